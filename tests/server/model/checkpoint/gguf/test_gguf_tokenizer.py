"""Tokenizers of GGUF files make llama.cpp's tokens of a text."""

from __future__ import annotations

import gzip
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from server.model.checkpoint.gguf.end_tokens import end_token_ids
from server.model.checkpoint.gguf.gguf_file import GgufFile
from server.model.checkpoint.gguf.gguf_tokenizer import chat_template, make_tokenizer
from server.model.errors import ModelError
from tests.gguf.compare_tokenizers import CASES, STORED, compared_tokens, is_alike
from tests.gguf.vocabularies import CONTROL, USER_DEFINED, byte_level, write_file

MERGES, TOKENS = "tokenizer.ggml.merges", "tokenizer.ggml.tokens"


@cache
def stored() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(gzip.decompress(STORED.read_bytes()))
    return found


def tokenizer_of(folder: Path, kind: str, pre: str | None = None, **values: Any) -> PreTrainedTokenizerBase:
    path = write_file(folder / "vocabulary.gguf", kind, pre, **values)
    return make_tokenizer(GgufFile.open(folder, path.name))


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_the_tokens_are_those_of_llama_cpp(name: str, tmp_path: Path) -> None:
    case, texts = CASES[name], stored()["texts"]
    tokenizer = make_tokenizer(GgufFile.open(tmp_path, case.write(tmp_path).name))
    for text, expected in zip(texts, stored()["ids"][name], strict=True):
        if is_alike(name, text):
            assert tokenizer.encode(text) == compared_tokens(case, expected), text


def test_no_two_rules_give_the_same_tokens() -> None:
    found = [json.dumps(ids) for name, ids in stored()["ids"].items() if name != "no-name"]
    assert len(set(found)) == len(found)


@pytest.mark.parametrize(
    ("pre", "words"),
    [
        ("gpt-4o", [" \u00c9COLE", " \u0939\u093f\u0928\u094d\u0926\u0940's"]),
        ("tekken", [" \u00c9COLE", " \u0939\u093f\u0928\u094d\u0926\u0940", "'s"]),
        ("kimi-k2", [" \u00c9COLE", " \u0939\u093f\u0928\u094d\u0926\u0940's"]),
    ],
)
def test_capitals_and_marks_beyond_ascii_belong_to_words_as_in_the_published_patterns(
    pre: str, words: list[str], tmp_path: Path
) -> None:
    text = " \u00c9COLE \u0939\u093f\u0928\u094d\u0926\u0940's"
    splitter = tokenizer_of(tmp_path, "gpt2", pre).backend_tokenizer.pre_tokenizer
    assert [text[slice(*span)] for _, span in splitter.pre_tokenize_str(text)] == words


@pytest.mark.parametrize(
    ("kind", "pre"), [("gpt2", "qwen2"), ("gpt2", "deepseek-v3"), ("gemma4", None), ("llama", None)]
)
def test_decoding_gives_the_text_back(kind: str, pre: str | None, tmp_path: Path) -> None:
    tokenizer = tokenizer_of(tmp_path, kind, pre, add_bos_token=False)
    unlike = ("\u2581", *CONTROL, *(USER_DEFINED if kind == "llama" else ()))  # a space follows special tokens there
    texts = [text for text in stored()["texts"] if not any(each in text for each in unlike)]
    assert len(texts) > 100
    assert [tokenizer.decode(tokenizer.encode(text)) for text in texts] == texts


def test_control_tokens_are_special_and_user_defined_ones_are_text(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(tmp_path, "gpt2", "qwen2")
    ids = tokenizer.encode("a<think>b<|im_end|>")
    assert len(ids) == 4
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a<think>b"


def test_tokens_that_no_characters_spell_are_matched_whole(tmp_path: Path) -> None:
    end = CONTROL[-1]
    assert tokenizer_of(tmp_path, "gpt2", "deepseek-v3").encode(f"a{end}") == [
        byte_level()[0].index(t) for t in ("a", end)
    ]


@pytest.mark.parametrize("kind", ["t5", "bert", "rwkv"])
def test_other_kinds_are_refused_by_name(kind: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=f"a tokenizer of the kind '{kind}', which Greenroom does not read"):
        tokenizer_of(tmp_path, kind)


@pytest.mark.parametrize(
    ("kind", "without", "changes", "message"),
    [
        ("gpt2", MERGES, {}, "has no merges"),
        ("gpt2", "", {MERGES: ["ab"]}, "the merge 'ab' is not of two tokens"),
        ("gpt2", "", {MERGES: ["qqq www"]}, "can't be used: .*qqq"),
        ("gpt2", "", {TOKENS: ["a", "b", "a"]}, "has 'a' twice"),
        ("llama", "tokenizer.ggml.scores", {}, "it has 0 scores for"),
        ("llama", "", {"tokenizer.ggml.scores": ["a"]}, "is not an array of numbers"),
        ("llama", "", {"tokenizer.ggml.add_space_prefix": 1}, "is not true or false"),
    ],
)
def test_a_vocabulary_that_can_not_be_used_is_refused_with_what_is_wrong(
    kind: str, without: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    file = GgufFile.open(tmp_path, write_file(tmp_path / "vocabulary.gguf", kind, "qwen2").name)
    metadata = {key: value for key, value in file.metadata.items() if key != without} | changes
    with pytest.raises(ModelError, match=message):
        make_tokenizer(GgufFile(file.name, metadata, {}))


def ends_of(tokens: list[str], **values: Any) -> list[str]:
    """Return the tokens that end a turn of a vocabulary whose tokens are all special."""
    numbers = {f"tokenizer.ggml.{key}": value for key, value in values.items()}
    file = GgufFile("a.gguf", {TOKENS: tokens, **numbers}, {})
    return [tokens[each] for each in end_token_ids(file)]


@pytest.mark.parametrize(
    ("tokens", "values", "ends"),
    [
        (["a", "<|im_end|>", "<|endoftext|>", "b"], {"eos_token_id": 3}, ["<|im_end|>", "<|endoftext|>", "b"]),
        (["a", "b", "c"], {"eot_token_id": 1, "eom_token_id": 2}, ["b", "c"]),
        (["<|end|>", "<|return|>", "<|call|>"], {}, ["<|return|>", "<|call|>"]),
        (["<|end|>", "<|user|>"], {}, ["<|end|>"]),
        (["<|user|>", "<|observation|>"], {"pre": "glm4"}, ["<|user|>", "<|observation|>"]),
        (["</s>", "<turn|>", "<|tool_response>"], {}, ["<turn|>", "<|tool_response>"]),
    ],
)
def test_a_turn_ends_at_tokens_that_the_file_or_their_names_tell(
    tokens: list[str], values: dict[str, Any], ends: list[str]
) -> None:
    assert ends_of(tokens, **values) == ends


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ({"chat_template": "a"}, "a"),
        (
            {"chat_template": "a", "chat_templates": ["tool_use"], "chat_template.tool_use": "b"},
            {"default": "a", "tool_use": "b"},
        ),
        ({"chat_templates": ["default"], "chat_template.default": "b"}, "b"),
        ({"chat_template": "a", "chat_templates": ["absent"]}, "a"),
        ({}, None),
    ],
)
def test_templates_come_by_their_names(values: dict[str, Any], found: str | dict[str, str] | None) -> None:
    metadata = {f"tokenizer.{key}": value for key, value in values.items()}
    assert chat_template(GgufFile("a.gguf", metadata, {})) == found
