"""An adapter of a router is not used without some of the experts whose rows it adds to."""

from __future__ import annotations

from typing import Any

import pytest

from expert_store import ExpertKey
from server.engine.interface import RequestRefusedError
from server.model.expert_variant import ExpertVariant, VariantLayer
from server.weights.selection import CombinedSelection


class Begun:
    """Weights that count the sequences that use them."""

    def __init__(self, *experts: int) -> None:
        keys = tuple(ExpertKey(1, expert, "law@1") for expert in experts)
        self.variant, self.num_begun = ExpertVariant("law", "law@1", {1: VariantLayer(keys)}), 0

    def begin(self) -> None:
        self.num_begun += 1

    def end(self) -> None:
        self.num_begun -= 1


def combined(experts: Any, adapters: Any, *layers: int) -> CombinedSelection:
    return CombinedSelection(experts, adapters, lambda: layers)


def test_it_is_refused_if_rows_of_its_router_have_other_numbers() -> None:
    experts, adapters = Begun(0, 2, 3), Begun()
    with pytest.raises(RequestRefusedError, match="an adapter that changes the router of layer 1 can't be used"):
        combined(experts, adapters, 0, 1).begin()
    assert (experts.num_begun, adapters.num_begun) == (0, 0)


@pytest.mark.parametrize(("experts", "layers"), [((0, 1, 2, 3, 4), [1]), ((0, 2, 3), [0])])
def test_it_is_used_with_all_experts_of_its_layers(experts: tuple[int, ...], layers: list[int]) -> None:
    weights, adapters = Begun(*experts), Begun()
    combined(weights, adapters, *layers).begin()
    assert (weights.num_begun, adapters.num_begun) == (1, 1)
