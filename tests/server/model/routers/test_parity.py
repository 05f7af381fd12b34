"""Routers beside the implementations that others publish."""

from __future__ import annotations

import pytest
import torch
from soft_mixture_of_experts.soft_moe import SoftMoE
from transformers import MixtralConfig, SwitchTransformersConfig
from transformers.models.mixtral.modeling_mixtral import MixtralTopKRouter
from transformers.models.switch_transformers.modeling_switch_transformers import SwitchTransformersSparseMLP

from server.model.routers.base import Dispatch
from server.model.routers.expert_choice import ExpertChoiceRouter
from server.model.routers.soft import SoftRouter
from server.model.routers.switch import SwitchRouter
from server.model.routers.top_k import TopKRouter

HIDDEN, EXPERTS, TOKENS = 16, 4, 24
ALL = torch.ones(TOKENS, dtype=torch.bool)


@pytest.fixture
def hidden_states() -> torch.Tensor:
    torch.manual_seed(7)
    return torch.randn(TOKENS, HIDDEN)


def run(dispatch: Dispatch, hidden_states: torch.Tensor, experts: torch.Tensor) -> torch.Tensor:
    """Run linear experts ``(experts, hidden, hidden)`` on a dispatch."""
    rows = dispatch.rows(hidden_states)
    return dispatch.combine(torch.einsum("rh,rho->ro", rows, experts[dispatch.experts]))


def test_top_k_chooses_and_weights_as_mixtral(hidden_states: torch.Tensor) -> None:
    theirs = MixtralTopKRouter(MixtralConfig(hidden_size=HIDDEN, num_local_experts=EXPERTS, num_experts_per_tok=2))
    torch.nn.init.normal_(theirs.weight)
    ours = TopKRouter(HIDDEN, EXPERTS, 2)
    ours.gate.weight = theirs.weight
    logits, weights, experts = theirs(hidden_states)
    dispatch = ours(hidden_states, ALL)
    assert torch.equal(dispatch.logits, logits)
    assert torch.equal(dispatch.experts.view(TOKENS, 2), experts)
    assert torch.equal(dispatch.weights.view(TOKENS, 2), weights)


@pytest.mark.parametrize("capacity", [2, 5, TOKENS])
def test_switch_equals_the_layer_of_switch_transformers(hidden_states: torch.Tensor, capacity: int) -> None:
    config = SwitchTransformersConfig(
        d_model=HIDDEN, d_ff=8, num_experts=EXPERTS, expert_capacity=capacity, dropout_rate=0.0
    )
    theirs = SwitchTransformersSparseMLP(config).eval()
    ours = SwitchRouter(HIDDEN, EXPERTS, capacity_factor=capacity * EXPERTS / TOKENS)
    ours.gate.weight = theirs.router.classifier.weight
    dispatch = ours(hidden_states, ALL)
    rows = dispatch.rows(hidden_states)
    outputs = torch.stack(
        [theirs.experts[f"expert_{expert}"](row) for row, expert in zip(rows, dispatch.experts.tolist(), strict=True)]
    )
    torch.testing.assert_close(dispatch.combine(outputs), theirs(hidden_states.unsqueeze(0))[0])
    assert int(dispatch.dropped.sum()) == int((theirs.router(hidden_states.unsqueeze(0))[0].sum(-1) == 0).sum())
    assert bool(dispatch.dropped.any()) == (capacity < TOKENS)


@pytest.mark.parametrize("slots", [1, 3])
def test_soft_equals_the_package_soft_mixture_of_experts(hidden_states: torch.Tensor, slots: int) -> None:
    theirs = SoftMoE(HIDDEN, HIDDEN, EXPERTS, slots, bias=False)
    ours = SoftRouter(HIDDEN, EXPERTS, slots_per_expert=slots)
    ours.gate.weight = torch.nn.Parameter(theirs.phi.detach().flatten(1).T)
    experts = theirs.experts.weight.detach()  # (experts, in, out)
    torch.testing.assert_close(run(ours(hidden_states, ALL), hidden_states, experts), theirs(hidden_states[None])[0])


@pytest.mark.parametrize("capacity_factor", [0.5, 1.0, 2.0])
def test_expert_choice_equals_a_direct_reading_of_its_paper(
    hidden_states: torch.Tensor, capacity_factor: float
) -> None:
    """Sums over one-hot choices, as arXiv 2202.09368 writes them in equations 1 to 3."""
    ours = ExpertChoiceRouter(HIDDEN, EXPERTS, capacity_factor=capacity_factor)
    experts = torch.randn(EXPERTS, HIDDEN, HIDDEN)
    affinities = (hidden_states @ ours.gate.weight.T).softmax(-1)  # S (n, e)
    gating, index = affinities.T.topk(int(TOKENS * capacity_factor / EXPERTS))  # G, I (e, k)
    choice = torch.nn.functional.one_hot(index, TOKENS).float()  # P (e, k, n)
    inputs = torch.einsum("ekn,nd->ekd", choice, hidden_states)
    outputs = torch.einsum("ekd,edo->eko", inputs, experts)
    expected = torch.einsum("ekn,ek,eko->no", choice, gating, outputs)
    dispatch = ours(hidden_states, ALL)
    torch.testing.assert_close(run(dispatch, hidden_states, experts), expected)
    assert torch.equal(dispatch.dropped, choice.sum((0, 1)) == 0)
