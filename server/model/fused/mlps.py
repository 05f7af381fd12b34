"""Gated MLPs of a CUDA device, of dense layers and shared experts: two products, and a launch between them."""

from __future__ import annotations

import inspect
import logging
from typing import Any

import torch
from torch import nn

from server.kernels.native.activation import recognise_gate
from server.kernels.native.structures.experts import Activation
from server.kernels.triton.available import runs_on
from server.model.blocks.linears import LINEARS
from server.model.fused.joined_linears import JoinedLinears
from server.model.native_layers.dense_gate import DenseGate
from server.model.native_layers.parts import dense_of

log = logging.getLogger(__name__)

NAMES = ("gate_proj", "up_proj", "down_proj")
KINDS = (Activation.SILU, Activation.GELU_TANH, Activation.GELU)


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

    A module does if it has the projections of one and nothing else, and a known activation between them, which it
    shows on samples.

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


def _fuse(module: Any) -> FusedMlp | None:
    dense = dense_of(module)
    if dense is None or dense.up is None or len(inspect.signature(module.forward).parameters) != 1:
        return None
    linears = dense.gate, dense.up, dense.down
    known = {id(parameter) for linear in linears for parameter in linear.parameters()}
    if any(id(parameter) not in known for parameter in module.parameters()):
        return None
    if dense.gate.in_features != dense.down.out_features or dense.gate.out_features != dense.up.out_features:
        return None
    gate = recognise_gate(DenseGate(dense))
    is_known = gate is not None and gate.activation in KINDS and not gate.limit
    return FusedMlp(module, Activation(gate.activation)) if gate is not None and is_known else None
