"""The passes that prepare a model run in the order that they need."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from server.model.trunk.passes import PASSES, PreparedModel

NAMES = [each.__name__ for each in PASSES]


def predecessors_of(run: Callable[[PreparedModel], None]) -> set[str]:
    """Return the passes that a docstring names in the sentence that begins with ``After:``."""
    after = re.search(r"After: (.*?)\.", run.__doc__ or "", re.DOTALL)
    return set() if after is None else set(re.findall(r"\b[a-z]+(?:_[a-z]+)+\b", after[1]))


@pytest.mark.parametrize("run", PASSES, ids=NAMES)
def test_a_pass_follows_those_that_its_docstring_names(run: Callable[[PreparedModel], None]) -> None:
    assert predecessors_of(run) <= set(NAMES[: NAMES.index(run.__name__)])


def test_docstrings_name_predecessors() -> None:
    assert sum(map(len, map(predecessors_of, PASSES))) >= len(PASSES)
