"""Gated MLPs of a CUDA device, of dense layers and shared experts: two products, and a launch between them."""

from __future__ import annotations

import inspect
import logging
from typing import Any

import torch
from torch import nn

from server.kernels.native.structures.experts import Activation
from server.kernels.triton.available import runs_on
from server.model.attention_trials import is_near
from server.model.blocks.linears import LINEARS
from server.model.joined_linears import JoinedLinears

log = logging.getLogger(__name__)

NAMES = ("gate_proj", "up_proj", "down_proj")
KINDS = (Activation.SILU, Activation.GELU_TANH, Activation.GELU)
TRIED = 8  # rows of a trial


class FusedMlp:
    """The forward of a gated MLP; where adapters change a projection, the module runs as it is."""

    def __init__(self, module: Any, activation: Activation):
        self._module, self._activation, self._original = module, int(activation), module.forward
        self.projections = JoinedLinears([module.gate_proj, module.up_proj])

    def __call__(self, hidden_states: torch.Tensor) -> torch.Tensor:
        from server.kernels.triton.gated_activation import activate  # noqa: PLC0415  may not be installed

        if self.projections.has_hooks:
            original: torch.Tensor = self._original(hidden_states)
            return original
        inner = activate(self.projections(hidden_states.flatten(0, -2)), self._activation)
        output: torch.Tensor = self._module.down_proj(inner.view(*hidden_states.shape[:-1], -1))
        return output


def fuse_mlps(model: nn.Module, device: torch.device | None) -> int:
    """Let gated MLPs compute their activation in one launch; return how many do.

    A module does if it has the projections of one, and if a known activation gives what it gives for random rows.

    Args:
        device: where Triton's kernels run; None for nowhere.
    """
    if device is None or not runs_on(device):
        return 0
    count = 0
    for module in model.modules():
        if all(isinstance(getattr(module, name, None), LINEARS) for name in NAMES):
            fused = _fuse(module)
            if fused is not None:
                fused.projections.join()
                module.forward = fused
                count += 1
    log.info("%d gated MLPs compute their activation in one launch", count)
    return count


@torch.inference_mode()
def _fuse(module: Any) -> FusedMlp | None:
    gate, down = module.gate_proj, module.down_proj
    parameter = next(module.parameters(), None)
    if parameter is None or len(inspect.signature(module.forward).parameters) != 1:
        return None
    if gate.in_features != down.out_features or gate.out_features != module.up_proj.out_features:
        return None
    generator = torch.Generator().manual_seed(0)
    dtype = parameter.dtype if parameter.is_floating_point() else torch.bfloat16
    rows = torch.randn((1, TRIED, gate.in_features), generator=generator).to(parameter.device, dtype)
    expected = module(rows)
    if not isinstance(expected, torch.Tensor):
        return None
    return next((fused for kind in KINDS if is_near((fused := FusedMlp(module, kind))(rows), expected)), None)
