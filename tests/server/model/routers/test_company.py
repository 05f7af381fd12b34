"""Results of a sequence alone and in company, and what padding does."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from server.model.routers.base import Router
from server.model.routers.expert_choice import ExpertChoiceRouter
from server.model.routers.soft import SoftRouter
from server.model.routers.switch import SwitchRouter
from server.model.routers.top_k import TopKRouter

HIDDEN, EXPERTS = 8, 4
EXPERT_WEIGHTS = torch.randn(EXPERTS, HIDDEN, HIDDEN, generator=torch.Generator().manual_seed(1))

ROUTERS = {
    "top_k": lambda: TopKRouter(HIDDEN, EXPERTS, 2),
    "switch": lambda: SwitchRouter(HIDDEN, EXPERTS),
    "switch with capacity": lambda: SwitchRouter(HIDDEN, EXPERTS, capacity_factor=1.0),
    "expert choice": lambda: ExpertChoiceRouter(HIDDEN, EXPERTS),
    "soft": lambda: SoftRouter(HIDDEN, EXPERTS, slots_per_expert=2),
}


def seeded(name: str) -> Router:
    torch.manual_seed(3)
    return ROUTERS[name]()


def run(router: Router, hidden_states: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    if mask is None:
        mask = torch.ones(len(hidden_states), dtype=torch.bool)
    dispatch = router(hidden_states, mask)
    rows = dispatch.rows(hidden_states)
    return dispatch.combine(
        torch.stack([row @ EXPERT_WEIGHTS[e] for row, e in zip(rows, dispatch.experts.tolist(), strict=True)])
    )


def tokens(seed: int, count: int) -> torch.Tensor:
    return torch.randn(count, HIDDEN, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", [name for name, make in ROUTERS.items() if make().is_independent])
@given(seed=st.integers(0, 2**32), company=st.integers(1, 20))
@settings(max_examples=20, deadline=None)
def test_an_independent_router_gives_the_same_bits_in_any_company(name: str, seed: int, company: int) -> None:
    router, own = seeded(name), tokens(seed, 5)
    together = run(router, torch.cat([own, tokens(seed + 1, company)]))
    assert torch.equal(together[:5], run(router, own))


@given(seed=st.integers(0, 2**32))
@settings(max_examples=20, deadline=None)
def test_with_capacity_a_sequence_loses_tokens_to_the_company_before_it(seed: int) -> None:
    router, own = seeded("switch with capacity"), tokens(seed, 4)
    crowd = own[:1].repeat(24, 1)  # wants the expert of the first token, and comes before it
    assert run(router, own)[0].any()
    batch = torch.cat([crowd, own])
    assert not run(router, batch)[24].any()
    assert router(batch, torch.ones(28, dtype=torch.bool)).dropped[24]


@pytest.mark.parametrize("name", [name for name, make in ROUTERS.items() if not make().is_independent])
def test_a_dependent_router_gives_another_result_in_company(name: str) -> None:
    router, own = seeded(name), tokens(5, 6)
    assert not torch.allclose(run(router, torch.cat([tokens(9, 12), own]))[-6:], run(router, own))


@pytest.mark.parametrize("name", [name for name, make in ROUTERS.items() if make().is_causal])
def test_a_causal_router_does_not_see_later_tokens(name: str) -> None:
    router, own = seeded(name), tokens(6, 9)
    assert torch.equal(run(router, own)[:5], run(router, own[:5]))


@pytest.mark.parametrize("name", list(ROUTERS))
@given(seed=st.integers(0, 2**32), pads=st.integers(1, 9))
@settings(max_examples=20, deadline=None)
def test_padding_takes_no_room_and_gets_zeros(name: str, seed: int, pads: int) -> None:
    router, own = seeded(name), tokens(seed, 8)
    order = torch.randperm(8 + pads, generator=torch.Generator().manual_seed(seed))
    places = order[:8].sort().values
    padded, mask = tokens(seed + 2, 8 + pads), torch.zeros(8 + pads, dtype=torch.bool)
    padded[places], mask[places] = own, True
    result = run(router, padded, mask)
    torch.testing.assert_close(result[places], run(router, own))
    assert not result[~mask].any()


@pytest.mark.parametrize("name", list(ROUTERS))
def test_no_more_experts_are_touched_than_declared(name: str) -> None:
    for count in (1, 2, 7):
        router = seeded(name)
        found = router(tokens(8, count), torch.ones(count, dtype=torch.bool))
        assert len(found.experts.unique()) <= router.max_experts(count)
        assert router.may_drop or not found.dropped.any()


def test_noise_is_added_in_training_alone() -> None:
    router, own = TopKRouter(HIDDEN, EXPERTS, 2, has_noise=True), tokens(4, 6)
    mask = torch.ones(6, dtype=torch.bool)
    assert not torch.equal(router(own, mask).logits, router(own, mask).logits)
    router.eval()
    assert torch.equal(router(own, mask).logits, router.logits(own))
