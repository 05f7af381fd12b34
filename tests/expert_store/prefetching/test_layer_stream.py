"""The order in which the experts of every layer are asked for."""

from __future__ import annotations

from collections.abc import Sequence

from expert_store import ExpertKey, LayerStream


class Asked:
    """A store that notes what it is asked for."""

    def __init__(self) -> None:
        self.keys: list[Sequence[ExpertKey]] = []

    def prefetch(self, keys: Sequence[ExpertKey]) -> int:
        self.keys.append(keys)
        return 0


def test_each_layer_asks_for_all_experts_of_the_next_and_the_last_for_those_of_the_first() -> None:
    store = Asked()
    stream = LayerStream(store, {3: 2, 5: 1})
    stream.observe(3, None, None)
    stream.observe(5, None, None)
    assert store.keys == [[ExpertKey(5, 0)], [ExpertKey(3, 0), ExpertKey(3, 1)]]


def test_it_asks_again_between_experts() -> None:
    store = Asked()
    stream = LayerStream(store, {0: 1, 1: 1})
    stream.observe(0, None, None)
    stream.request()
    assert store.keys == [[ExpertKey(1, 0)]] * 2
