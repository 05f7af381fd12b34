"""A prompt whose experts are paged through a card: the next layer's are copied while a layer is computed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.card.prompts import CASES
from tests.card.test_card import run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

BY_TORCH = [name for name, case in CASES.items() if not case[-1]]  # Triton's interpreter takes long


@pytest.fixture(scope="module")
def seen() -> dict[str, Any]:
    lines = map(json.loads, run("-m", "tests.card.prompts", *BY_TORCH).splitlines())
    return {line.pop("name"): line for line in lines}


@pytest.mark.parametrize("case", BY_TORCH)
def test_copies_ahead_change_no_bit_and_are_no_race(seen: dict[str, Any], case: str) -> None:
    assert (seen[case]["equal"], seen[case]["races"]) == (True, {})


def test_the_next_layer_is_copied_before_a_layer_has_ended(seen: dict[str, Any]) -> None:
    case = seen["experts in memory, by torch"]
    for step in case["ahead"][:2]:
        copies, early = map(list, zip(*step, strict=True))
        assert early == copies
        assert all(early)
    assert not any(early for step in case["without"] for _, early in step)


def test_nothing_is_copied_ahead_with_slots_for_less_than_two_layers(seen: dict[str, Any]) -> None:
    assert not any(early for step in seen["slots for less than two layers"]["ahead"] for _, early in step)
