"""Grammars of turns that are free text, but whose calls follow the schemas."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from server.api.tool_parsers.chat_format import ChatFormat
from server.engine.interface import GrammarSpec
from server.engine.text.codec import Codec
from tests.chat_formats import FAMILIES, Family
from tests.server.api.tool_parsers.test_grammars import END, LIGHT, REASONING, TEXTS, UNTHINKING, codec_of, walk
from tests.server.api.tool_parsers.turns import parser_of, read

UNMARKED = ("pythonic", "llama", "unknown")  # whose calls have no mark to begin with
SAY = {"say": {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}}
WRONG = {"say": {"type": "object", "properties": {"text": {"type": "string", "enum": ["b"]}}, "required": ["text"]}}
PROSE = "If a < b, [x] is {y};\nsee </b> <i>f</i> function, that is f(x).\n"
marked = pytest.mark.parametrize("name", [name for name in TEXTS if name not in UNMARKED])


def unthinking(name: str) -> Family:
    return replace(FAMILIES[name], thinking=FAMILIES[name].thinking if name in UNTHINKING else "", prompt_end="")


def strict(family: Family, schemas: object) -> GrammarSpec | None:
    chat_format = ChatFormat.of(family.traits)
    reasoning = chat_format.reasoning_after(family.prompt_end)
    return chat_format.grammar(None, schemas, reasoning, must_call=False, has_one_call=False, is_strict=True)


def place_of_refusal(codec: Codec, spec: GrammarSpec | None, text: str) -> int | None:
    """Return the first token of a text that the grammar does not allow; None if it allows the text and its end."""
    assert spec is not None
    matcher = codec.compile_grammar(spec).matcher()
    token_ids = codec.encode(text)
    for place, token_id in enumerate(token_ids):
        if not matcher.allowed()[token_id]:
            return place
        matcher.accept(token_id)
    may_end = matcher.is_complete or matcher.allowed()[codec.chat_traits.special[END]]
    return None if may_end else len(token_ids)


def said(name: str, text: str) -> str:
    """Return text in the format of a family."""
    return f"<|channel|>final<|message|>{text}" if name == "harmony" else text


@pytest.mark.slow
@marked
def test_any_text_is_allowed(name: str, tmp_path: Path) -> None:
    family = unthinking(name)
    spec, codec = strict(family, SAY), codec_of(family, tmp_path)
    for text in (said(name, "Yes"), said(name, PROSE), said(name, "[1, 2]"), said(name, '{"name": "say"}')):
        assert place_of_refusal(codec, spec, text) is None, text


@pytest.mark.slow
@marked
def test_a_call_after_text_follows_its_schema(name: str, tmp_path: Path) -> None:
    family = unthinking(name)
    codec = codec_of(family, tmp_path)
    before = f"<|channel|>commentary<|message|>{PROSE}<|end|><|start|>assistant" if name == "harmony" else PROSE
    text = before + TEXTS[name]
    assert place_of_refusal(codec, strict(family, SAY), text) is None
    turn = read(parser_of(family, schemas=SAY), text)
    assert (turn.content.strip(), [called for called, _ in turn.calls]) == (PROSE.strip(), ["say"])
    refused_at = place_of_refusal(codec, strict(family, WRONG), text)
    assert refused_at is not None
    assert refused_at > len(codec.encode(before))


@pytest.mark.slow
@marked
def test_a_turn_that_begins_as_a_call_becomes_one(name: str, tmp_path: Path) -> None:
    family = unthinking(name)
    codec, spec = codec_of(family, tmp_path), strict(family, LIGHT)
    begin = TEXTS[name][: TEXTS[name].index("say")]
    for seed in range(8):
        turn = read(parser_of(family, schemas=LIGHT), walk(codec, spec, random.Random(seed), begin))
        assert turn.content == ""
        for called, arguments in turn.calls:
            assert called == "set_light"
            assert json.loads(arguments)["room"] in ("hall", "attic")
        assert turn.calls


@pytest.mark.parametrize("name", [name for name in TEXTS if name not in (*UNMARKED, "harmony")])
def test_text_that_resembles_a_call_is_text(name: str, tmp_path: Path) -> None:
    family = unthinking(name)
    codec = codec_of(family, tmp_path)
    for opener in ChatFormat.of(family.traits).syntax.openers:
        if opener not in codec.chat_traits.special:
            letters = opener.partition("<|role_sep|>")[0]
            assert place_of_refusal(codec, strict(family, SAY), f"{PROSE}{letters[:-1]}{PROSE}{letters[:-2]}") is None


@pytest.mark.parametrize("name", REASONING)
def test_a_model_may_reason_before(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    codec, spec = codec_of(family, tmp_path), strict(family, SAY)
    for text in (said(name, "Yes"), TEXTS[name]):
        assert place_of_refusal(codec, spec, REASONING[name] + text) is None
    assert place_of_refusal(codec, strict(family, WRONG), REASONING[name] + TEXTS[name]) is not None


@pytest.mark.parametrize("name", [name for name in REASONING if name != "harmony"])
def test_a_turn_may_end_within_its_reasoning(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    thought = REASONING[name][: REASONING[name].index("I call") + 3]
    assert place_of_refusal(codec_of(family, tmp_path), strict(family, SAY), thought) is None


@pytest.mark.parametrize("name", UNMARKED)
def test_calls_without_a_marker_are_not_constrained(name: str) -> None:
    assert strict(unthinking(name), SAY) is None
