"""A piece of a prompt asks for the next layer's experts while a layer runs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from expert_store.keys import ExpertKey
from expert_store.prefetching.prompt_stream import DevicePromptStream, PromptStream

LAYERS = {0: 4, 2: 4, 3: 4}  # layer 1 has no experts


class Asked:
    """Notes what it is asked for."""

    def __init__(self, *, has_room: bool = True) -> None:
        self.keys: list[ExpertKey] = []
        self._has_room = has_room

    def prefetch(self, keys: Sequence[ExpertKey]) -> int:
        self.keys = list(keys)
        return len(keys)

    def holds_at_once(self, layers: Sequence[int]) -> bool:
        assert layers == (0, 2)
        return self._has_room


def experts(asked: Asked) -> list[tuple[int, int]]:
    return [(key.layer, key.expert) for key in asked.keys]


def test_what_the_gate_names_is_asked_for_first_choices_first() -> None:
    asked = Asked()
    stream = PromptStream(asked, LAYERS, {0: lambda rows: rows})
    stream.observe(0, np.array([[0, 1]]), np.array([[3, 1], [2, 1]]))
    assert experts(asked) == [(2, 3), (2, 2), (2, 1)]


@pytest.mark.parametrize(("chosen", "wanted"), [([[0, 1]], 0), ([[0, 1], [2, 1]], 4)])
def test_without_a_gate_all_are_asked_for_once_most_of_a_layer_are_used(chosen: list[list[int]], wanted: int) -> None:
    asked = Asked()
    PromptStream(asked, LAYERS, {}).observe(2, np.array(chosen), None)
    assert experts(asked) == [(3, expert) for expert in range(wanted)]


def test_nothing_is_asked_for_behind_the_last_layer() -> None:
    asked = Asked()
    stream = PromptStream(asked, LAYERS, {})
    stream.observe(2, np.array([[0, 1, 2, 3]]), None)
    asked.keys = []
    stream.observe(3, np.array([[0, 1, 2, 3]]), None)
    stream.request()
    assert experts(asked) == []


@pytest.mark.parametrize(
    ("chosen", "has_room", "wanted"),
    [
        pytest.param([[0, 1], [2, 1]], True, [0, 1, 2, 3], id="most of a layer: all of the next"),
        pytest.param([[0, 1]], True, [3, 1], id="a part of a layer: what the gate names"),
        pytest.param([[0, 1], [2, 1]], False, [], id="slots for less than both layers: nothing"),
    ],
)
def test_a_device_is_asked_for_what_it_has_room_for(chosen: list[list[int]], has_room: bool, wanted: list[int]) -> None:
    asked = Asked(has_room=has_room)
    stream = DevicePromptStream(asked, LAYERS, {0: lambda rows: rows})
    stream.observe(0, np.array(chosen), np.array([[3, 1]]))
    assert experts(asked) == [(2, expert) for expert in wanted]
