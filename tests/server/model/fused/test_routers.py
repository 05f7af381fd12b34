"""Routers of a model choose in one launch, and give what their modules give."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssTopKRouter
from transformers.models.phimoe.modeling_phimoe import PhimoeTopKRouter
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeTopKRouter

from server.kernels.native.structures.layers import RouterKind
from server.kernels.triton import available
from server.kernels.triton.available import has_driver
from server.model.declarations.declaration import Router
from server.model.fused.routers import FusedRouter, fuse_routers
from tests.families import make_config

DEVICE = torch.device("cuda" if has_driver() else "cpu")
ROWS = 9
ROUTERS: dict[str, Callable[[], nn.Module]] = {
    "a softmax, then the best": lambda: Qwen3MoeTopKRouter(make_config("qwen3_moe")),
    "the best, then a softmax, with biases": lambda: GptOssTopKRouter(make_config("gpt_oss")),
    "sigmoids, a correction, groups and a scale": lambda: DeepseekV3TopkRouter(make_config("deepseek_v3")),
}
DECLARED = {
    "a softmax, then the best": Router(kind=RouterKind.SOFTMAX_FIRST, top_k=2, is_normalised=False),
    "the best, then a softmax, with biases": Router(kind=RouterKind.TOP_FIRST, top_k=2, bias="mlp.gate.bias"),
    "sigmoids, a correction, groups and a scale": Router(
        kind=RouterKind.SIGMOID,
        top_k=2,
        correction="mlp.gate.e_score_correction_bias",
        groups=2,
        top_groups=1,
        scale=2.5,
    ),
}
OTHERS: dict[str, tuple[Callable[[], nn.Module], Router]] = {
    "the sparse mixer": (
        lambda: PhimoeTopKRouter(make_config("phimoe")),
        Router(kind=RouterKind.SPARSE_MIXER, top_k=2),
    ),
    "a linear layer": (lambda: nn.Linear(32, 8), DECLARED["a softmax, then the best"]),
    "weights that the module does not make": (
        lambda: Qwen3MoeTopKRouter(make_config("qwen3_moe")),
        replace(DECLARED["a softmax, then the best"], scale=2.5),
    ),
}

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Triton's kernels run, by its interpreter where there is no GPU."""
    monkeypatch.setattr(available, "missing", lambda _: None)


def make(build: Callable[[], nn.Module]) -> nn.Sequential:
    torch.manual_seed(0)
    module = build()
    for tensor in [*module.parameters(), *module.buffers()]:
        nn.init.normal_(tensor)
    return nn.Sequential(module).requires_grad_(False).to(DEVICE)


def fuse(
    module: nn.Module, declared: Router, dtype: torch.dtype = torch.float32, device: torch.device | None = DEVICE
) -> int:
    return fuse_routers({module: declared}, dtype, device)


@pytest.mark.parametrize("name", ROUTERS)
def test_experts_and_weights_are_those_of_the_module(name: str) -> None:
    model = make(ROUTERS[name])
    rows = torch.randn((ROWS, 32), device=DEVICE)
    logits, weights, chosen = model(rows)
    assert fuse(model[0], DECLARED[name]) == 1
    own_logits, own_weights, own_chosen = model(rows)
    assert torch.equal(own_logits, logits)
    (found, own_order), (wanted, order) = own_chosen.sort(1), chosen.sort(1)
    assert torch.equal(found, wanted)
    assert (own_weights.gather(1, own_order) - weights.gather(1, order)).abs().max() < 1e-6


def test_the_tensors_that_a_variant_puts_in_place_count() -> None:
    model = make(ROUTERS["a softmax, then the best"])
    fuse(model[0], DECLARED["a softmax, then the best"])
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
    assert fuse(model[1], DECLARED["sigmoids, a correction, groups and a scale"], torch.bfloat16) == 1
    own_logits, _, own_chosen = model[1](rows)
    assert torch.equal(own_logits, logits)
    assert torch.equal(own_chosen.sort(1).values, chosen.sort(1).values)


@pytest.mark.parametrize("name", OTHERS)
def test_what_chooses_in_no_known_way_stays_as_it_is(name: str) -> None:
    build, declared = OTHERS[name]
    model = make(build)
    assert fuse(model[0], declared) == 0
    assert not isinstance(model[0].forward, FusedRouter)


def test_nothing_changes_where_triton_does_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(ROUTERS["a softmax, then the best"])
    monkeypatch.setattr(available, "missing", lambda _: "there is no driver")
    declared = DECLARED["a softmax, then the best"]
    assert fuse(model[0], declared) == 0
    assert fuse(model[0], declared, device=None) == 0
