"""Turns of each family are parsed correctly, however their text is split."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.api.tool_parsers.chat_format import ChatFormat
from server.api.tool_parsers.model_families import CALL_FORMATS, OTHER
from tests.chat_formats import FAMILIES
from tests.server.api.tool_parsers.turns import cut, parser_of, read

CUTS = st.lists(st.integers(0, 2000), max_size=12)
families = pytest.mark.parametrize("name", FAMILIES)


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in ("harmony", "unknown")])
def test_the_format_is_recognized_by_the_template(name: str) -> None:
    syntaxes = {each.name: each.syntax for each in CALL_FORMATS}
    assert ChatFormat.of(FAMILIES[name].traits).syntax == syntaxes[name]


def test_every_known_format_has_an_example() -> None:
    assert {each.name for each in CALL_FORMATS} == set(FAMILIES) - {"harmony", "unknown"}


def test_a_format_without_calls_in_the_template_is_recognized_by_its_tokens() -> None:
    traits = replace(FAMILIES["kimi"].traits, template="{{ tools }}{{ messages }}")
    assert ChatFormat.of(traits).syntax == ChatFormat.of(FAMILIES["kimi"].traits).syntax
    assert ChatFormat.of(replace(traits, markers={})).syntax == OTHER


@families
def test_content_reasoning_and_calls_are_separated(name: str) -> None:
    family = FAMILIES[name]
    turn = read(parser_of(family), [family.text])
    assert (turn.content, turn.reasoning, turn.calls) == (family.content, family.reasoning, list(family.calls))
    assert turn.finish_reason == "tool_calls"
    assert len(set(turn.ids)) == len(turn.ids)
    assert all(call_id.startswith("call_") for call_id in turn.ids) or turn.ids == family.ids


@families
def test_single_characters_give_the_same_turn(name: str) -> None:
    family = FAMILIES[name]
    turn, whole = read(parser_of(family), family.text), read(parser_of(family), [family.text])
    assert replace(turn, ids=[]) == replace(whole, ids=[])


@given(st.sampled_from(sorted(FAMILIES)), CUTS)
def test_the_split_of_a_turn_does_not_matter(name: str, places: list[int]) -> None:
    family = FAMILIES[name]
    turn, whole = read(parser_of(family), cut(family.text, places)), read(parser_of(family), [family.text])
    assert replace(turn, ids=[]) == replace(whole, ids=[])


@given(st.sampled_from(sorted(FAMILIES)), CUTS, st.data())
def test_the_split_of_a_malformed_turn_does_not_matter(name: str, places: list[int], data: st.DataObject) -> None:
    """A turn with some text missing, doubled or moved, as models sometimes write it."""
    text = FAMILIES[name].text
    first, last, to = (data.draw(st.integers(0, len(text))) for _ in range(3))
    broken = data.draw(
        st.sampled_from(
            [text[:first], text[:first] + text[last:], text[:to] + text[first:last] + text[to:], text.replace("{", "")]
        )
    )
    turn, whole = read(parser_of(FAMILIES[name]), cut(broken, places)), read(parser_of(FAMILIES[name]), [broken])
    assert replace(turn, ids=[]) == replace(whole, ids=[])


@families
def test_only_the_first_call_is_returned_if_a_tool_is_named(name: str) -> None:
    family = FAMILIES[name]
    assert read(parser_of(family, has_one_call=True), family.text).calls == [family.calls[0]]


@families
def test_without_tools_nothing_is_a_call(name: str) -> None:
    """The reasoning is still recognized."""
    family = FAMILIES[name]
    turn = read(parser_of(family, schemas={}), family.text)
    assert (turn.reasoning, turn.calls, turn.finish_reason) == (family.reasoning, [], "stop")


@families
def test_a_turn_of_plain_text_is_text(name: str) -> None:
    family = FAMILIES[name]
    text = " It's {nice} [today] in <b>Paris</b>; 3 < 4.\n "
    say = f"Hm.{'</think>'}\n{text}" if family.prompt_end.startswith("<think>") else text
    if name == "harmony":
        say = f"<|channel|>final<|message|>{text}"
    turn = read(parser_of(family), say)
    assert turn.calls == []
    assert turn.content.strip() == text.strip()
    assert turn.finish_reason == "stop"
