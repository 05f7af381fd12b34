"""Finds experts that every token runs through with weights of the router (Inkling)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import nn

from server.kernels.native.activation import recognise_gate
from server.kernels.native.linear import plain_matrix
from server.kernels.native.structures.experts import ExpertShape
from server.kernels.native.structures.layers import Mixture, Mlp, RouterKind
from server.kernels.native.structures.matrices import Format, Matrix
from server.model.blocks.errors import UnsupportedLayerError
from server.model.blocks.kept_tensors import KeptTensors
from server.model.blocks.linears import no_matrix

NAMES = "gate_proj", "up_proj", "down_proj"  # tensors (experts, outputs, inputs)
DIMENSIONS = 3


@dataclass(frozen=True)
class SharedExperts:
    """Experts whose weights lie in one tensor for each of the three projections."""

    module: Any
    tensors: tuple[nn.Parameter, nn.Parameter, nn.Parameter]  # of gate, up and down
    has_gate: bool = True

    @classmethod
    def find(cls, block: nn.Module, experts: nn.Module) -> Self | None:
        """Return those of a block; None if it has none.

        Args:
            experts: the block's own.
        """
        for module in block.modules():
            tensors = [getattr(module, name, None) for name in NAMES]
            if module is experts or not all(
                isinstance(each, nn.Parameter) and each.ndim == DIMENSIONS for each in tensors
            ):
                continue
            gate, up, down = tensors
            count, outputs, inputs = gate.shape  # type: ignore[union-attr]
            if up.shape == gate.shape and down.shape == (count, inputs, outputs):  # type: ignore[union-attr]
                return cls(module, (gate, up, down))  # type: ignore[arg-type]
        return None

    @property
    def count(self) -> int:
        return self.tensors[0].shape[0]

    @property
    def act_fn(self) -> Any:
        return self.module.act_fn

    def parameters(self) -> Iterator[nn.Parameter]:
        return iter(self.tensors)

    def _apply_gate(self, gate_up: torch.Tensor) -> torch.Tensor:
        """Return what is between the projections, by the name ``recognise_gate`` asks for."""
        gate, up = gate_up.chunk(2, -1)
        result: torch.Tensor = self.act_fn(gate) * up
        return result

    def describe(self, mixture: Mixture, kept: KeptTensors) -> None:
        """Describe the experts to the kernels.

        Raises:
            UnsupportedLayerError: the kernels can't run them.
        """
        gate = recognise_gate(self)  # type: ignore[arg-type]
        if gate is None:
            raise UnsupportedLayerError("its shared experts have an unknown activation")
        first, up, down = (self._matrix(each, kept) for each in self.tensors)
        shape = ExpertShape((Matrix * 2)(first, up), down, -1, -1, gate, 2, Format.FLOAT32)
        mixture.shared = Mlp(shape=shape, weighting=no_matrix(), scale=1.0)
        mixture.has_shared, mixture.router.num_shared = 1, self.count
        mixture.router.kind, mixture.router.is_normalised = RouterKind.SIGMOID, 1  # the only ones with shared rows
        mixture.shared_bytes = self.tensors[0][0].nbytes

    @staticmethod
    def _matrix(tensor: nn.Parameter, kept: KeptTensors) -> Matrix:
        """Describe the first expert's matrix."""
        matrix = plain_matrix(tensor.detach()[0]) if tensor.is_contiguous() else None
        if matrix is None:
            raise UnsupportedLayerError(f"its shared experts have weights of {tensor.dtype} in an unknown order")
        kept.hold(tensor.detach())
        return matrix
