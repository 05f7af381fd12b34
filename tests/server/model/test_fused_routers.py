"""Routers of a model choose in one launch, and give what their modules give."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssTopKRouter
from transformers.models.phimoe.modeling_phimoe import PhimoeTopKRouter
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeTopKRouter

from server.kernels.triton import available
from server.kernels.triton.available import has_driver
from server.model import fused_routers
from server.model.fused_routers import FusedRouter, fuse_routers
from tests.families import make_config

DEVICE = torch.device("cuda" if has_driver() else "cpu")
ROWS = 9
ROUTERS: dict[str, Callable[[], nn.Module]] = {
    "a softmax, then the best": lambda: Qwen3MoeTopKRouter(make_config("qwen3_moe")),
    "the best, then a softmax, with biases": lambda: GptOssTopKRouter(make_config("gpt_oss")),
    "sigmoids, a correction, groups and a scale": lambda: DeepseekV3TopkRouter(make_config("deepseek_v3")),
}
OTHERS: dict[str, Callable[[], nn.Module]] = {
    "the sparse mixer": lambda: PhimoeTopKRouter(make_config("phimoe")),
    "a linear layer": lambda: nn.Linear(32, 8),
}

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Triton's kernels run, by its interpreter where there is no GPU."""
    monkeypatch.setattr(available, "missing", lambda _: None)
    monkeypatch.setattr(fused_routers, "ROWS", 3)  # of each spread; fewer to interpret


def make(build: Callable[[], nn.Module]) -> nn.Sequential:
    torch.manual_seed(0)
    module = build()
    for tensor in [*module.parameters(), *module.buffers()]:
        nn.init.normal_(tensor)
    return nn.Sequential(module).requires_grad_(False).to(DEVICE)


@pytest.mark.parametrize("name", ROUTERS)
def test_experts_and_weights_are_those_of_the_module(name: str) -> None:
    model = make(ROUTERS[name])
    rows = torch.randn((ROWS, 32), device=DEVICE)
    logits, weights, chosen = model(rows)
    assert fuse_routers(model, DEVICE) == 1
    own_logits, own_weights, own_chosen = model(rows)
    assert torch.equal(own_logits, logits)
    (found, own_order), (wanted, order) = own_chosen.sort(1), chosen.sort(1)
    assert torch.equal(found, wanted)
    assert (own_weights.gather(1, own_order) - weights.gather(1, order)).abs().max() < 1e-6


def test_the_tensors_that_a_variant_puts_in_place_count() -> None:
    model = make(ROUTERS["a softmax, then the best"])
    fuse_routers(model, DEVICE)
    rows, other = torch.randn((ROWS, 32), device=DEVICE), torch.randn((6, 32), device=DEVICE)
    model[0].weight = nn.Parameter(other, requires_grad=False)
    logits, _, chosen = model(rows)
    assert torch.equal(logits, F.linear(rows, other))
    assert torch.equal(chosen, logits.topk(2).indices)


def test_logits_stay_wide_where_rows_are_narrow() -> None:
    model = make(ROUTERS["sigmoids, a correction, groups and a scale"])
    model.append(nn.Linear(1, 1, dtype=torch.bfloat16)).requires_grad_(False)
    model.insert(0, model.pop(1))  # a model of bfloat16 whose router is float32
    rows = torch.randn((ROWS, 32), device=DEVICE).bfloat16()
    logits, _, chosen = model[1](rows)
    assert fuse_routers(model, DEVICE) == 1
    own_logits, _, own_chosen = model[1](rows)
    assert torch.equal(own_logits, logits)
    assert torch.equal(own_chosen.sort(1).values, chosen.sort(1).values)


@pytest.mark.parametrize("name", OTHERS)
def test_what_chooses_in_no_known_way_stays_as_it_is(name: str) -> None:
    model = make(OTHERS[name])
    assert fuse_routers(model, DEVICE) == 0
    assert not isinstance(model[0].forward, FusedRouter)


def test_nothing_changes_where_triton_does_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(ROUTERS["a softmax, then the best"])
    monkeypatch.setattr(available, "missing", lambda _: "there is no driver")
    assert fuse_routers(model, DEVICE) == 0
    assert fuse_routers(model, None) == 0
