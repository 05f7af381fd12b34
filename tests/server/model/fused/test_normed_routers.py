"""Routers that norm their rows run as a norm, a product and a choice, and give what their modules give."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.models.gemma4.modeling_gemma4 import Gemma4TextRouter

from server.kernels.native.structures.layers import RouterKind
from server.kernels.triton import available
from server.kernels.triton.available import has_driver
from server.model.declarations.declaration import Router
from server.model.fused.normed_routers import FusedNormedRouter, fuse_normed_routers
from tests.families import make_config

DEVICE = torch.device("cuda" if has_driver() else "cpu")
DECLARED = Router(module="router", weight=None, kind=RouterKind.SOFTMAX_FIRST, top_k=2)

pytestmark = pytest.mark.slow


@pytest.fixture
def router(monkeypatch: pytest.MonkeyPatch) -> nn.Sequential:
    """Return a router, and let Triton's kernels run, by its interpreter where there is no GPU."""
    monkeypatch.setattr(available, "missing", lambda _: None)
    torch.manual_seed(0)
    module = Gemma4TextRouter(make_config("gemma4_text"))
    for tensor in module.parameters():
        nn.init.normal_(tensor)
    return nn.Sequential(module).requires_grad_(False).to(DEVICE)


def test_scores_experts_and_weights_are_those_of_the_module(router: nn.Sequential) -> None:
    rows = torch.randn((9, router[0].hidden_size), device=DEVICE)
    scores, weights, chosen = router(rows)
    assert fuse_normed_routers({router[0]: DECLARED}, torch.float32, DEVICE) == 1
    own_scores, own_weights, own_chosen = router(rows)
    assert torch.equal(own_chosen, chosen)
    assert (own_scores - scores).abs().max() < 1e-6
    assert (own_weights - weights).abs().max() < 1e-5


def test_a_router_with_other_weights_stays_as_it_is(router: nn.Sequential) -> None:
    forward = router[0].forward

    def with_square_weights(hidden_states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        scores, weights, chosen = forward(hidden_states)
        return scores, weights.square(), chosen

    router[0].forward = with_square_weights
    assert fuse_normed_routers({router[0]: DECLARED}, torch.float32, DEVICE) == 0
    assert not isinstance(router[0].forward, FusedNormedRouter)
