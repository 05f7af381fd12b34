"""A server's steps on a card whose calls fail: an error by name or slower copies, and never a wrong result."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.card.test_card import run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def seen() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run("-m", "tests.card.failures"))
    return found


@pytest.mark.parametrize("kind", ["allocation", "event", "host register"])
def test_steps_with_a_failed_call_have_no_wrong_logits_and_no_race(seen: dict[str, Any], kind: str) -> None:
    found = seen[kind]
    assert (found["failed"], found["wrong"], found["races"]) == (found["runs"], 0, {})


def test_a_step_that_fails_does_so_with_the_error_of_the_call(seen: dict[str, Any]) -> None:
    errors = seen["allocation"]["errors"]
    assert errors
    assert all("out of memory" in error for error in errors)


def test_a_step_that_failed_leaves_graphs_to_those_after_it(seen: dict[str, Any]) -> None:
    found = seen["first decode"]
    assert (len(found["errors"]), found["captured"]) == (1, 1)


@pytest.mark.parametrize("kind", ["event", "host register"])
def test_what_the_host_can_do_without_fails_no_step(seen: dict[str, Any], kind: str) -> None:
    assert seen[kind]["errors"] == []


@pytest.mark.parametrize(("case", "is_smaller"), [("growth", False), ("growth and return", True)])
def test_a_tier_that_can_not_grow_goes_on_with_what_it_gets(
    seen: dict[str, Any], case: str, *, is_smaller: bool
) -> None:
    found = seen[case]
    assert "give a smaller --device-expert-memory" in found["error"]
    assert 0 < found["slots"] <= found["before"]
    assert (found["slots"] < found["before"]) == is_smaller
    assert found["wrong"] == 0
