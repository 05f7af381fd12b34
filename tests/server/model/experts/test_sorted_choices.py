"""Choices are sorted by expert."""

from __future__ import annotations

from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from expert_store import ExpertKey
from server.model.experts import sorted_choices
from server.model.experts.sorted_choices import sort_choices

KEYS = tuple(ExpertKey(3, expert) for expert in range(6))


@pytest.mark.parametrize("most", [0, 64], ids=["many", "few"])
@given(chosen=st.lists(st.lists(st.integers(0, 8), min_size=2, max_size=2), min_size=1, max_size=20))
def test_choices_of_an_expert_lie_together_in_their_order(most: int, chosen: list[list[int]]) -> None:
    with patch.object(sorted_choices, "FEW_CHOICES", most):
        order, spans = sort_choices(np.array(chosen), KEYS)
    choices = [expert for token in chosen for expert in token]
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(len(choices)))
    for key in KEYS:
        start, end = spans.get(key, (0, 0))
        assert order[start:end].tolist() == [place for place, expert in enumerate(choices) if expert == key.expert]
    assert all(choices[place] >= len(KEYS) for place in order[max((end for _, end in spans.values()), default=0) :])
