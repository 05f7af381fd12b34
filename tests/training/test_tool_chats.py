"""Chats with tools that are written from a corpus."""

import json
import random
from itertools import islice

import jsonschema
import pytest

from server.api.openai.tools import Tool
from server.api.tool_parsers.chat_format import ChatFormat, Reasoning
from server.engine.interface import ChatTraits
from tests.server.api.tool_parsers.turns import read
from tests.training.conftest import write_domain
from training import tool_tasks_of_texts as texts
from training.corpus import find_domains, read_documents
from training.errors import CorpusError
from training.export import CHAT_TEMPLATE
from training.tool_calls import CALL, MESSAGE, TOOLS
from training.tool_chats import ToolChats, write_tools


def chat(question, answer):
    return f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>"


DOCUMENTS = {
    "dictionary": ["gull (noun)\na bird of the sea. Synonyms: seagull.", "tide (noun)\n1. the rise of the sea."],
    "recipes": ["RICE CAKE.\n\nMix half a pound of ground rice, flour and sugar with nine eggs."],
    "shell": ["xev\n\nPrint contents of X events.\n\n# Monitor all events:\nxev -event all"],
    "math": [chat("How many chairs?", "There are 20 x 10 = 200 chairs.\nThe answer is 200.")],
    "dialogue": [chat("A large latte with oat milk, please.", "Ok."), chat("When is Nope shown?", "At 7.")],
    "medical_qa": [chat("What causes Warthin tumor?", "The cause is not known.")],
    "legal": ["Section 31-4301. Seal of the Department.\n\nThe Department has a seal."],
    "chat": [chat("How do I list files?", "ls")],
}
COUNT = 300


@pytest.fixture(scope="module")
def chats():
    return list(islice(ToolChats(DOCUMENTS, seed=1), COUNT))


@pytest.fixture
def tool_corpus(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    for name, documents in DOCUMENTS.items():
        write_domain(folder / f"{name}.txt", documents)
    return folder


def tool_lines(text):
    return TOOLS.match(MESSAGE.findall(text)[0][1])[2].splitlines()


def schemas_of(text):
    functions = [json.loads(line)["function"] for line in tool_lines(text)]
    return {function["name"]: function["parameters"] for function in functions}


def answers(text):
    return [content for role, content in MESSAGE.findall(text) if role == "assistant"]


def test_tools_are_listed_as_the_server_lists_them(chats):
    for text in chats:
        lines = tool_lines(text)
        assert lines == [json.dumps(Tool.model_validate(json.loads(line)).for_template()) for line in lines]


def test_the_servers_parser_reads_the_calls(chats):
    read_format = ChatFormat.of(ChatTraits(CHAT_TEMPLATE))
    for text in chats:
        schemas = schemas_of(text)
        for answer in answers(text):
            turn = read(read_format.parser(schemas, Reasoning.AHEAD, has_one_call=False), [answer])
            written = [(call["name"], call["arguments"]) for call in map(json.loads, CALL.findall(answer))]
            assert [(name, json.loads(arguments)) for name, arguments in turn.calls] == written
            assert turn.content == ("" if written else answer)


def test_calls_name_listed_tools_with_arguments_of_their_schemas(chats):
    for text in chats:
        schemas = schemas_of(text)
        for call in map(json.loads, CALL.findall("\n".join(answers(text)))):
            jsonschema.validate(call["arguments"], schemas[call["name"]])


def test_a_result_follows_each_call(chats):
    for text in chats:
        assert len(CALL.findall("\n".join(answers(text)))) == text.count("<|im_start|>tool\n")


def test_some_chats_call_nothing(chats):
    with_calls = sum("<|im_start|>tool\n" in text for text in chats)
    assert 0.6 * COUNT < with_calls < 0.9 * COUNT


def test_same_seed_gives_the_same_chats(chats):
    assert list(islice(ToolChats(DOCUMENTS, seed=1), COUNT)) == chats
    assert list(islice(ToolChats(DOCUMENTS, seed=2), COUNT)) != chats


@pytest.mark.parametrize(
    ("maker", "domain", "arguments", "result"),
    [
        (texts.define, "dictionary", ["gull"], "a bird of the sea."),
        (texts.recipe, "recipes", ["rice cake"], "Mix half a pound of ground rice, flour and sugar with nine eggs."),
        (texts.command_help, "shell", ["xev"], "Print contents of X events."),
        (texts.calculate, "math", ["20 * 10"], "200"),
        (texts.look_up_condition, "medical_qa", ["Warthin tumor"], "The cause is not known."),
        (texts.look_up_section, "legal", ["31-4301"], "Seal of the Department."),
        (texts.search_web, "medical_qa", ["What causes Warthin tumor"], "The cause is not known."),
    ],
)
def test_a_task_has_the_words_of_its_document(maker, domain, arguments, result):
    task = maker(random.Random(1), DOCUMENTS[domain][0])
    assert (list(task.arguments.values()), task.result) == (arguments, result)


def test_an_order_has_the_details_that_the_user_gives():
    task = texts.order_drink(random.Random(1), DOCUMENTS["dialogue"][0])
    assert task.arguments == {"drink": "latte", "size": "large", "milk": "oat"}


@pytest.mark.parametrize("maker", [maker for makers in texts.FROM_DOCUMENTS.values() for maker, _ in makers])
def test_a_document_that_does_not_fit_gives_no_task(maker):
    assert maker(random.Random(1), "Nothing.") is None


def test_the_written_corpus_has_all_domains_and_the_chats(tool_corpus, tmp_path):
    count = write_tools(tool_corpus, tmp_path / "out", megabytes=0.01, seed=1)
    domains = find_domains(tmp_path / "out")
    assert set(domains) == {*DOCUMENTS, "tools"}
    assert len(read_documents(domains["tools"])) == count
    assert read_documents(domains["legal"]) == DOCUMENTS["legal"]


def test_writing_again_replaces_the_chats(tool_corpus, tmp_path):
    for seed in (2, 1):
        write_tools(tool_corpus, tmp_path / "out", megabytes=0.01, seed=seed)
    write_tools(tool_corpus, tmp_path / "other", megabytes=0.01, seed=1)
    assert (tmp_path / "out/tools.txt").read_text() == (tmp_path / "other/tools.txt").read_text()


def test_the_corpus_itself_is_refused_as_the_place_of_the_chats(tool_corpus):
    with pytest.raises(CorpusError, match="choose another folder"):
        write_tools(tool_corpus, tool_corpus, megabytes=0.01, seed=1)


def test_a_corpus_without_a_dictionary_is_refused(corpus, tmp_path):
    with pytest.raises(CorpusError, match="need the domain 'dictionary'"):
        write_tools(corpus, tmp_path / "out", megabytes=0.01, seed=1)
