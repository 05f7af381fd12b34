"""Gated MLPs on a CUDA device, of dense layers and shared experts: two products, and a launch between them."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from server.kernels.native.activation import recognise_gate
from server.kernels.native.structures.experts import Activation
from server.model.blocks.cuda import check_known
from server.model.blocks.errors import UnsupportedLayerError
from server.model.blocks.joined_linears import JoinedLinears
from server.model.native_layers.dense_gate import DenseGate
from server.model.native_layers.parts import dense_of

KINDS = (Activation.SILU, Activation.GELU_TANH, Activation.GELU)


class CudaMlp:
    """A gated MLP; where adapters change a projection, the module runs as it is.

    Args:
        module: declared as an MLP.

    Raises:
        UnsupportedLayerError: the kernel does not know it.
    """

    def __init__(self, module: Any):
        dense = dense_of(module)
        if dense is None or dense.up is None:
            raise UnsupportedLayerError("no kernel has MLPs without a gate of their own")
        gate = recognise_gate(DenseGate(dense))
        if gate is None or gate.activation not in KINDS:
            raise UnsupportedLayerError("no kernel has its activation")
        check_known(
            {
                "limits of activations": gate.limit,
                "factors of results": dense.factor is not None,
                "more arguments": len(inspect.signature(module.forward).parameters) != 1,
            }
        )
        self._module, self._down, self._activation = module, dense.down, int(gate.activation)
        self.projections = JoinedLinears([dense.gate, dense.up])

    def install(self) -> None:
        """Let its layer call it in the place of its module."""
        self.projections.join()
        self._original, self._module.forward = self._module.forward, self

    def __call__(self, hidden_states: torch.Tensor) -> torch.Tensor:
        from server.kernels.triton.gated_activation import activate  # noqa: PLC0415  may not be installed

        if self.projections.has_hooks:
            original: torch.Tensor = self._original(hidden_states)
            return original
        inner = activate(self.projections(hidden_states.flatten(0, -2)), self._activation)
        output: torch.Tensor = self._down(inner.view(*hidden_states.shape[:-1], -1))
        return output
