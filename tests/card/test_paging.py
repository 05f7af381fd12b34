"""Each family and each format that pages experts through a card has the logits of the CPU, and no race.

CI takes some of them (`tests/nightly.py`).
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.card.checkpoints import CHECKPOINTS
from tests.card.test_card import run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

TOLERANCE = 2e-5  # by the largest logit, in float32


@pytest.fixture(scope="module")
def compared(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Compare those for which tests run, in one process."""
    of_tests = [item.callspec.params["name"] for item in request.session.items if item.path == request.path]
    lines = map(json.loads, run("-m", "tests.card.paging", *of_tests).splitlines())
    return {line.pop("name"): line for line in lines}


@pytest.mark.parametrize("name", CHECKPOINTS, ids=lambda name: name.replace(" ", "_"))
def test_experts_paged_through_a_card_give_the_logits_of_the_cpu(compared: dict[str, Any], name: str) -> None:
    found = compared[name]
    assert found.pop("error", 1.0) < TOLERANCE, found
    assert found == {"races": {}, "devices": [1], "left pinned": 0}
