"""The kernels run an experts module's own activation, and none that only resembles it."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers.activations import ACT2CLS, ACT2FN

from server.kernels.native.activation import NAMES, recognise_gate
from server.kernels.native.structures.experts import Activation, Gate
from server.model.model_building import build_model
from tests.families import make_config

KINDS = {
    "silu": Activation.SILU,
    "swish": Activation.SILU,
    "gelu": Activation.GELU,
    "gelu_python": Activation.GELU,
    "gelu_pytorch_tanh": Activation.GELU_TANH,
    "gelu_python_tanh": Activation.GELU_TANH,
    "gelu_new": Activation.GELU_TANH,
    "gelu_fast": Activation.GELU_TANH,
    "gelu_accurate": Activation.GELU_TANH,
    "quick_gelu": Activation.QUICK_GELU,
    "relu": Activation.RELU,
    "relu2": Activation.RELU_SQUARED,
}


def gated(act_fn: Callable[[torch.Tensor], torch.Tensor], **fields: Any) -> Any:
    def apply(rows: torch.Tensor) -> torch.Tensor:
        gate, up = rows.chunk(2, dim=-1)
        return act_fn(gate) * up

    return SimpleNamespace(has_gate=True, act_fn=act_fn, _apply_gate=apply, **fields)


def kind_of(gate: Gate | None) -> Activation | None:
    return None if gate is None else Activation(gate.activation)


@pytest.mark.parametrize("name", sorted(ACT2CLS))
@pytest.mark.parametrize("has_gate", [True, False])
def test_an_activation_of_transformers_is_recognised_as_itself_or_not_at_all(name: str, has_gate: bool) -> None:
    act_fn = ACT2FN[name]
    module = gated(act_fn) if has_gate else SimpleNamespace(has_gate=False, act_fn=act_fn)
    with torch.inference_mode():
        assert kind_of(recognise_gate(module)) is KINDS.get(name)


@pytest.mark.parametrize("has_gate", [True, False])
@pytest.mark.parametrize("limit", [0.5, 7.0, 16.0, 1000.0])
def test_an_activation_with_a_limit_is_not_one_without(limit: float, has_gate: bool) -> None:
    def clamped(x: torch.Tensor) -> torch.Tensor:
        return F.silu(x.clamp(max=limit))

    module = gated(clamped) if has_gate else SimpleNamespace(has_gate=False, act_fn=clamped)
    assert recognise_gate(module) is None


@pytest.mark.parametrize("name", ["limit", "swiglu_limit"])
def test_a_limit_of_both_projections_that_the_module_names_is_known(name: str) -> None:
    def apply(rows: torch.Tensor) -> torch.Tensor:
        gate, up = rows.chunk(2, dim=-1)
        return F.silu(gate.clamp(max=10)) * up.clamp(-10, 10)

    module: Any = SimpleNamespace(has_gate=True, act_fn=F.silu, _apply_gate=apply, **{name: 10.0})
    found = recognise_gate(module)
    assert found is not None
    assert (found.activation, found.limit) == (Activation.SILU, 10.0)


def test_a_clamped_swish_is_known_by_the_names_of_minimax_m3() -> None:
    def apply(rows: torch.Tensor) -> torch.Tensor:
        gate, up = rows.chunk(2, dim=-1)
        gate = gate.clamp(max=7)
        return gate * torch.sigmoid(1.702 * gate) * (up.clamp(-7, 7) + 1)

    module: Any = SimpleNamespace(has_gate=True, _apply_gate=apply, swiglu_alpha=1.702, swiglu_limit=7.0)
    found = recognise_gate(module)
    assert found is not None
    assert (found.activation, found.is_interleaved) == (Activation.CLAMPED_SWISH, 0)


def test_a_limit_of_the_up_projection_is_seen() -> None:
    def apply(rows: torch.Tensor) -> torch.Tensor:
        gate, up = rows.chunk(2, dim=-1)
        return F.silu(gate) * up.clamp(-100, 100)

    assert recognise_gate(SimpleNamespace(has_gate=True, act_fn=F.silu, _apply_gate=apply)) is None  # type: ignore[arg-type]


def test_an_activation_that_is_another_one_by_name_is_not_recognised() -> None:
    class GELUTanh(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.gelu(x)

    assert "GELUTanh" in NAMES
    assert recognise_gate(gated(GELUTanh())) is None


@pytest.mark.parametrize("difference", [1e-3, -1e-3])
def test_a_clamped_swish_of_a_slightly_different_slope_is_not_recognised(difference: float) -> None:
    def apply(rows: torch.Tensor) -> torch.Tensor:
        gate, up = rows[..., ::2].clamp(max=7.0), rows[..., 1::2].clamp(-7.0, 7.0)
        return (up + 1) * gate * torch.sigmoid(gate * 1.702)

    module: Any = SimpleNamespace(has_gate=True, act_fn=None, _apply_gate=apply, alpha=1.702, limit=7.0)
    assert kind_of(recognise_gate(module)) is Activation.CLAMPED_SWISH
    module.alpha += difference
    assert recognise_gate(module) is None


@pytest.mark.parametrize("family", ["deepseek_v4", "glm5_next", "gpt_oss", "hy_v4", "inkling2", "minimax_m3_vl_text"])
def test_experts_of_families_that_clamp_or_cap_are_known(family: str) -> None:
    model = build_model(make_config(family), torch.float32)
    experts: Any = next(module for module in model.modules() if hasattr(module, "_apply_gate"))
    found = recognise_gate(experts)
    assert found is not None
    assert found.limit > 0
