"""Grammars that force calls: everything that they allow is parsed as calls that follow the schemas."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from server.api.tool_parsers.chat_format import ChatFormat, Reasoning
from server.engine.interface import GrammarSpec
from server.engine.text.codec import Codec
from server.model.checkpoint.folder_checkpoint import FolderCheckpoint
from server.model.text.tokenizer import Tokenizer
from tests.byte_tokenizer import save_byte_tokenizer
from tests.chat_formats import CALL, CALLS, END_CALL, END_CALLS, FAMILIES, KIMI, SCHEMAS, SEP, Family
from tests.server.api.tool_parsers.turns import Turn, parser_of, read

END = "<|end_of_text|>"
LIGHT = {"set_light": SCHEMAS["set_light"]}
MODES = {
    "type": "object",
    "properties": {"mode": {"$ref": "#/$defs/mode"}, "level": {"enum": [1, 2]}, "note": {"const": "x"}},
    "required": ["level"],
    "additionalProperties": False,
    "$defs": {"mode": {"type": "string", "enum": ["fast", "slow"]}},
}
families = pytest.mark.parametrize("name", FAMILIES)


def codec_of(family: Family, folder: Path) -> Codec:
    """A codec of bytes and the family's special tokens."""
    save_byte_tokenizer(folder, family.template, (*family.special, END))
    return Codec(Tokenizer(FolderCheckpoint(folder)), eos_token_ids=frozenset({256 + len(family.special)}))


def walk(codec: Codec, spec: GrammarSpec | None, rng: random.Random, begin: str = "") -> str:
    """Return a text that a grammar allows, continuing ``beginning``; special tokens are written out."""
    assert spec is not None
    special = codec.chat_traits.special
    matcher, token_ids = codec.compile_grammar(spec).matcher(), codec.encode(begin)
    for token_id in token_ids:
        assert matcher.allowed()[token_id], begin
        matcher.accept(token_id)
    while not matcher.is_complete:
        allowed = [int(token_id) for token_id in matcher.allowed().nonzero()[0]]
        token_id = rng.choice(allowed)
        if token_id == special[END]:
            break
        matcher.accept(token_id)
        token_ids.append(token_id)
    return "".join(codec.pieces(token_ids))


def forced(family: Family, codec: Codec, schemas: object = LIGHT, *, has_one_call: bool, begin: str = "") -> list[Turn]:
    """Parse some turns that a grammar forces to be calls."""
    chat_format = ChatFormat.of(codec.chat_traits)
    reasoning = chat_format.reasoning_after(family.prompt_end)
    spec = chat_format.grammar(None, schemas, reasoning, must_call=True, has_one_call=has_one_call)
    texts = [walk(codec, spec, random.Random(seed), begin) for seed in range(16)]
    return [read(parser_of(family, schemas=schemas), text) for text in texts]


@pytest.mark.slow
@families
def test_a_forced_call_has_arguments_of_the_schema(name: str, tmp_path: Path) -> None:
    family = replace(FAMILIES[name], thinking=FAMILIES[name].thinking if name in UNTHINKING else "", prompt_end="")
    turns = forced(family, codec_of(family, tmp_path), has_one_call=True)
    for turn in turns:
        ((called, arguments),) = turn.calls
        values = json.loads(arguments)
        assert called == "set_light"
        assert values["room"] in ("hall", "attic")
        assert values["on"] in (True, False)
        assert len(values) == 2
        assert turn.content == ""
    assert len({turn.calls[0][1] for turn in turns}) > 1


UNTHINKING = ("harmony", "pythonic", "llama")  # whose signs are written as text of the template


@pytest.mark.slow
@families
def test_several_calls_may_be_forced_at_once(name: str, tmp_path: Path) -> None:
    family = replace(FAMILIES[name], thinking=FAMILIES[name].thinking if name in UNTHINKING else "", prompt_end="")
    turns = forced(family, codec_of(family, tmp_path), has_one_call=False)
    assert all(turn.calls for turn in turns)
    assert {called for turn in turns for called, _ in turn.calls} == {"set_light"}
    assert all(json.loads(arguments)["room"] for turn in turns for _, arguments in turn.calls)
    assert (max(len(turn.calls) for turn in turns) > 1) == (name != "harmony")


@pytest.mark.slow
@families
def test_optional_parameters_and_references_are_followed(name: str, tmp_path: Path) -> None:
    family = replace(FAMILIES[name], thinking=FAMILIES[name].thinking if name in UNTHINKING else "", prompt_end="")
    turns = forced(family, codec_of(family, tmp_path), {"run": MODES}, has_one_call=True)
    for turn in turns:
        ((_, arguments),) = turn.calls
        values = json.loads(arguments)
        assert values["level"] in (1, 2)
        assert set(values) <= {"mode", "level", "note"}
        assert values.get("mode", "fast") in ("fast", "slow")
        assert values.get("note", "x") == "x"


@pytest.mark.slow
@families
def test_texts_of_any_kind_are_followed(name: str, tmp_path: Path) -> None:
    """The grammar allows calls as the family writes them without a grammar."""
    family = replace(FAMILIES[name], thinking=FAMILIES[name].thinking if name in UNTHINKING else "", prompt_end="")
    codec = codec_of(family, tmp_path)
    free = {"say": {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}}
    spec = ChatFormat.of(codec.chat_traits).grammar(None, free, Reasoning.AHEAD, must_call=True, has_one_call=True)
    assert spec is not None
    said = codec.encode(TEXTS[name])
    matcher = codec.compile_grammar(spec).matcher()
    for place, token_id in enumerate(said):
        assert matcher.allowed()[token_id], codec.pieces(said)[:place]
        matcher.accept(token_id)
    turn = read(parser_of(family, schemas=free), TEXTS[name])
    assert [(called, json.loads(arguments)) for called, arguments in turn.calls] == [("say", {"text": "a </b>\nc"})]


SAY = r'{"text": "a </b>\nc"}'
SAY_JSON = '{"name": "say", "arguments": ' + SAY + "}"
TEXTS = {
    "hermes": f"<tool_call>\n{SAY_JSON}\n</tool_call>",
    "qwen-coder": ("<tool_call>\n<function=say>\n<parameter=text>\na </b>\nc\n</parameter>\n</function>\n</tool_call>"),
    "glm": "<tool_call>say\n<arg_key>text</arg_key>\n<arg_value>a </b>\nc</arg_value>\n</tool_call>",
    "minimax": (
        '<minimax:tool_call>\n<invoke name="say">\n<parameter name="text">a </b>\nc</parameter>\n</invoke>\n'
        "</minimax:tool_call>"
    ),
    "mistral-list": f"[TOOL_CALLS][{SAY_JSON}]",
    "mistral": f"[TOOL_CALLS]say[ARGS]{SAY}",
    "deepseek-v3": f"{CALLS}{CALL}function{SEP}say\n```json\n{SAY}\n```{END_CALL}{END_CALLS}",
    "deepseek-v3.1": f"{CALLS}{CALL}say{SEP}{SAY}{END_CALL}{END_CALLS}",
    "kimi": f"{KIMI[0]}{KIMI[2]}functions.say:0{KIMI[3]}{SAY}{KIMI[4]}{KIMI[1]}",
    "gemma": '<|tool_call>call:say{text:<|"|>a </b>\nc<|"|>}<tool_call|>',
    "gigachat": f"function call<|role_sep|>\n{SAY_JSON}",
    "lfm2": r'<|tool_call_start|>[say(text="a </b>\nc")]<|tool_call_end|>',
    "granite": f"<|tool_call|>[{SAY_JSON}]",
    "tool-calls": f"<tool_calls>[{SAY_JSON}]</tool_calls>",
    "longcat": f"<longcat_tool_call>\n{SAY_JSON}\n</longcat_tool_call>",
    "nemotron": f"<TOOLCALL>[{SAY_JSON}]</TOOLCALL>",
    "pythonic": r'[say(text="a </b>\nc")]',
    "llama": SAY_JSON.replace("arguments", "parameters"),
    "harmony": f"<|channel|>commentary to=functions.say <|constrain|>json<|message|>{SAY}",
    "unknown": f"[{SAY_JSON}]",
}

REASONING = {
    "hermes": "<think>\nI call.\n</think>\n\n",
    "qwen-coder": "I call.\n</think>\n\n",
    "mistral": "[THINK]I call.[/THINK]",
    "gemma": "<|channel>thought\nI call.\n<channel|>",
    "harmony": "<|channel|>analysis<|message|>I call.<|end|><|start|>assistant",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", REASONING)
def test_a_model_may_reason_before_a_forced_call(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    turn = forced(family, codec_of(family, tmp_path), has_one_call=True, begin=REASONING[name])[0]
    assert turn.reasoning == "I call."
    assert turn.calls[0][0] == "set_light"


@pytest.mark.parametrize("name", REASONING)
def test_a_model_may_reason_before_json(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    codec, chat_format = codec_of(family, tmp_path), ChatFormat.of(family.traits)
    reasoning = chat_format.reasoning_after(family.prompt_end)
    schema = GrammarSpec("json_schema", json.dumps({"enum": [{"a": 1}, {"a": 2}]}))
    spec = chat_format.grammar(schema, {}, reasoning, must_call=False, has_one_call=False)
    begin = REASONING[name] + ("<|channel|>final<|message|>" if name == "harmony" else "")
    turn = read(parser_of(family, schemas={}), walk(codec, spec, random.Random(0), begin))
    assert turn.reasoning == "I call."
    assert json.loads(turn.content) in ({"a": 1}, {"a": 2})


def test_reasoning_that_the_prompt_has_closed_is_not_read_again(tmp_path: Path) -> None:
    family = FAMILIES["deepseek-v3.1"]
    for turn in forced(family, codec_of(family, tmp_path), has_one_call=True):
        assert (turn.reasoning, turn.calls[0][0]) == ("", "set_light")


def test_the_model_may_choose_between_json_and_calls(tmp_path: Path) -> None:
    family = replace(FAMILIES["hermes"], thinking="")
    codec, schema = codec_of(family, tmp_path), GrammarSpec("json_schema", '{"const": {"a": 1}}')
    spec = ChatFormat.of(family.traits).grammar(schema, LIGHT, Reasoning.AHEAD, must_call=False, has_one_call=True)
    assert spec is not None
    assert spec.param == "response_format"
    said = read(parser_of(family), walk(codec, spec, random.Random(0), "{"))
    called = read(parser_of(family), walk(codec, spec, random.Random(0), "<"))
    assert (json.loads(said.content), said.calls) == ({"a": 1}, [])
    assert (called.content, called.calls[0][0]) == ("", "set_light")


def test_a_format_that_nothing_precedes_is_followed_as_it_is() -> None:
    spec = GrammarSpec("json_object")
    chat_format = ChatFormat.of(FAMILIES["granite"].traits)
    assert chat_format.grammar(spec, {}, Reasoning.AHEAD, must_call=False, has_one_call=False) is spec
    assert chat_format.grammar(None, LIGHT, Reasoning.AHEAD, must_call=False, has_one_call=False) is None


@pytest.mark.slow
def test_names_and_texts_of_a_schema_do_not_break_out_of_the_grammar(tmp_path: Path) -> None:
    odd = 'a"b\\n\n<[1]> %json {} | "'
    schema = {"type": "object", "properties": {odd: {"enum": [odd]}}, "required": [odd], "additionalProperties": False}
    for name in ("hermes", "granite", "harmony"):
        family = replace(FAMILIES[name], thinking=FAMILIES[name].thinking if name in UNTHINKING else "")
        turns = forced(family, codec_of(family, tmp_path / name), {"f": schema}, has_one_call=True)
        assert {tuple(json.loads(turn.calls[0][1]).items()) for turn in turns} == {((odd, odd),)}
