"""Gated MLPs that compute their activation in one launch give what their modules give."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.activations import ACT2FN

from server.kernels.triton import available
from server.kernels.triton.available import has_driver
from server.model.blocks.errors import UnsupportedLayerError
from server.model.cuda_layers.mlps import CudaMlp

pytest.importorskip("triton")

DEVICE = torch.device("cuda" if has_driver() else "cpu")
HIDDEN, INNER = 12, 20


class Mlp(nn.Module):
    """A gated MLP as transformers' models have it."""

    def __init__(self, activation: str):
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(HIDDEN, INNER, bias=False) for _ in range(2))
        self.down_proj, self.act_fn = nn.Linear(INNER, HIDDEN, bias=False), ACT2FN[activation]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))
        return output


@pytest.fixture(autouse=True)
def _kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Triton's kernels run, by its interpreter where there is no GPU."""
    monkeypatch.setattr(available, "missing", lambda _: None)


def make(activation: str) -> tuple[Mlp, torch.Tensor]:
    torch.manual_seed(0)
    return Mlp(activation).requires_grad_(False).to(DEVICE), torch.randn(1, 3, HIDDEN, device=DEVICE)


@pytest.mark.parametrize("activation", ["silu", "gelu_pytorch_tanh", "gelu"])
def test_rows_are_those_of_the_module(activation: str) -> None:
    mlp, rows = make(activation)
    expected = mlp(rows)
    CudaMlp(mlp).install()
    assert isinstance(mlp.forward, CudaMlp)
    assert torch.allclose(mlp(rows), expected, atol=1e-6)


def test_a_module_with_an_adapter_runs_as_it_is() -> None:
    mlp, rows = make("silu")
    expected = mlp.down_proj(mlp.act_fn(2 * mlp.gate_proj(rows)) * mlp.up_proj(rows))
    CudaMlp(mlp).install()
    mlp.gate_proj.register_forward_hook(lambda _module, _given, output: 2 * output)
    assert torch.allclose(mlp(rows), expected, atol=1e-6)


def test_another_activation_has_no_kernel() -> None:
    with pytest.raises(UnsupportedLayerError, match="activation"):
        CudaMlp(make("tanh")[0])


def test_a_limit_of_the_activation_has_no_kernel() -> None:
    """Numbers of the usual size do not reach it."""

    class Limited(Mlp):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            output: torch.Tensor = self.down_proj(self.act_fn(self.gate_proj(x).clamp(max=10.0)) * self.up_proj(x))
            return output

    with pytest.raises(UnsupportedLayerError, match="activation"):
        CudaMlp(Limited("silu").to(DEVICE))
