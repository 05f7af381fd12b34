"""Routers of a model choose in one launch, and give what their modules give."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter
from transformers.models.gemma4.modeling_gemma4 import Gemma4TextRouter
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssTopKRouter
from transformers.models.minimax_m2.modeling_minimax_m2 import MiniMaxM2TopKRouter
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeTopKRouter

from server.kernels.native.structures.layers import RouterKind
from server.kernels.triton import available
from server.kernels.triton.available import has_driver
from server.model.blocks.errors import UnsupportedLayerError
from server.model.cuda_layers.routers import CudaNormedRouter, CudaRouter
from server.model.declarations.declaration import Router
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
UNKNOWN = {
    "the sparse mixer": replace(DECLARED["a softmax, then the best"], kind=RouterKind.SPARSE_MIXER),
    "a choice outside of the module": replace(DECLARED["a softmax, then the best"], chooses=False),
    "a matrix of a part": replace(DECLARED["a softmax, then the best"], weight="mlp.gate.linear.weight"),
    "biases": replace(DECLARED["a softmax, then the best"], bias="mlp.gate.bias"),
    "more experts": replace(DECLARED["a softmax, then the best"], num_shared=1),
    "a factor of logits": replace(DECLARED["a softmax, then the best"], logits_scale=0.5),
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


@pytest.mark.parametrize("name", ROUTERS)
def test_experts_and_weights_are_those_of_the_module(name: str) -> None:
    model = make(ROUTERS[name])
    rows = torch.randn((ROWS, 32), device=DEVICE)
    logits, weights, chosen = model(rows)
    CudaRouter(model[0], DECLARED[name], torch.float32).install()
    own_logits, own_weights, own_chosen = model(rows)
    assert torch.equal(own_logits, logits)
    (found, own_order), (wanted, order) = own_chosen.sort(1), chosen.sort(1)
    assert torch.equal(found, wanted)
    assert (own_weights.gather(1, own_order) - weights.gather(1, order)).abs().max() < 1e-6


def test_the_tensors_that_a_variant_puts_in_place_count() -> None:
    model = make(ROUTERS["a softmax, then the best"])
    CudaRouter(model[0], DECLARED["a softmax, then the best"], torch.float32).install()
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
    CudaRouter(model[1], DECLARED["sigmoids, a correction, groups and a scale"], torch.bfloat16).install()
    own_logits, _, own_chosen = model[1](rows)
    assert torch.equal(own_logits, logits)
    assert torch.equal(own_chosen.sort(1).values, chosen.sort(1).values)


def test_a_correction_may_be_an_argument() -> None:
    model = make(lambda: MiniMaxM2TopKRouter(make_config("minimax_m2")))
    rows, correction = torch.randn((ROWS, 32), device=DEVICE), torch.randn(8, device=DEVICE)
    _, weights, chosen = model[0](rows, correction)
    declared = Router(kind=RouterKind.SIGMOID, top_k=2, correction="mlp.e_score_correction_bias")
    CudaRouter(model[0], declared, torch.float32).install()
    _, own_weights, own_chosen = model[0](rows, correction)
    (found, own_order), (wanted, order) = own_chosen.sort(1), chosen.sort(1)
    assert torch.equal(found, wanted)
    assert (own_weights.gather(1, own_order) - weights.gather(1, order)).abs().max() < 1e-6


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_is_declared_otherwise_has_no_kernel(name: str) -> None:
    with pytest.raises(UnsupportedLayerError):
        CudaRouter(make(ROUTERS["a softmax, then the best"])[0], UNKNOWN[name], torch.float32)


def test_a_router_that_norms_its_rows_gives_the_scores_experts_and_weights_of_its_module() -> None:
    model = make(lambda: Gemma4TextRouter(make_config("gemma4_text")))
    rows = torch.randn((ROWS, model[0].hidden_size), device=DEVICE)
    scores, weights, chosen = model(rows)
    declared = Router(module="router", weight=None, kind=RouterKind.SOFTMAX_FIRST, top_k=2)
    CudaNormedRouter(model[0], declared, torch.float32).install()
    own_scores, own_weights, own_chosen = model(rows)
    assert torch.equal(own_chosen, chosen)
    assert (own_scores - scores).abs().max() < 1e-6
    assert (own_weights - weights).abs().max() < 1e-5
