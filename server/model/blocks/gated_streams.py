"""GatedStreamParts: modules that sum the rows of a residual stream by gates, number by number (Qwen4)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy
from ctypes import addressof
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import nn

from server.kernels.native.structures.layers import StreamGates, StreamMix
from server.model.blocks.kept_tensors import KeptTensors
from server.model.blocks.linears import LINEARS, Linear, matrix_of, no_matrix
from server.model.blocks.norms import EPSILONS, TOLERANCE

COUNT = "hc_count"  # attribute: rows of a token, which lie side by side
NORM, DOWN, UP, RESULTS = "hc_norm", "input_mix_weight_down", "input_mix_weight_up", "block_inject_weight"
MAGNITUDE = 2.0  # of the weights of results, which transformers has as a number


@dataclass(frozen=True)
class RowNorm:
    """An RMS norm of each of some rows that lie side by side."""

    module: Any
    weight: torch.Tensor  # float32 (rows * size,), multiplied with the normed values
    epsilon: float

    @classmethod
    def find(cls, module: Any, num_rows: int) -> Self | None:
        """Return a module as such a norm; None if it computes something else."""
        parameters = dict(module.named_parameters())
        epsilon = next((getattr(module, name) for name in EPSILONS if hasattr(module, name)), None)
        if parameters.keys() != {"weight"} or not isinstance(epsilon, float) or len(module.weight) % num_rows:
            return None
        factor, copied = torch.linspace(0.5, 1.5, len(module.weight)), deepcopy(module).to("cpu", torch.float32)
        copied.weight = nn.Parameter(factor, requires_grad=False)
        sample = torch.linspace(-3, 2, len(factor)).square().unsqueeze(0)
        with torch.inference_mode():
            found = copied(sample)
        rows = sample.view(num_rows, -1)
        normed = (rows * torch.rsqrt(rows.square().mean(1, keepdim=True) + epsilon)).flatten()
        for offset in (0, 1):
            by = factor + offset
            if float((found - normed * by).abs().max()) <= TOLERANCE * float(normed.abs().max() * by.abs().max()):
                return cls(module, (module.weight.detach().float().cpu() + offset).contiguous(), epsilon)
        return None


@dataclass(frozen=True)
class GatedStreamParts:
    """The parts of a module that sums the rows of a token for a part of a layer, or for a model's head."""

    module: Any
    norm: RowNorm
    down: Linear
    up: Linear
    results: Linear | None  # logits of the weights of a part's results; None: nothing is added to the rows after it
    num_streams: int

    @classmethod
    def find(cls, module: Any) -> Self | None:
        """Return the parts of a child of a layer or of a model's body; None if it is something else."""
        count = getattr(module, COUNT, None)
        children = dict(module.named_children())
        linears = [children.get(name) for name in (DOWN, UP, RESULTS)]
        if not isinstance(count, int) or not {NORM, DOWN, UP} <= children.keys() <= {NORM, DOWN, UP, RESULTS}:
            return None
        if any(not isinstance(each, LINEARS) or each.bias is not None for each in linears if each is not None):
            return None
        norm = RowNorm.find(children[NORM], count)
        down, up, results = (each if isinstance(each, LINEARS) else None for each in linears)
        if norm is None or down is None or up is None:
            return None
        return cls(module, norm, down, up, results, count)

    @property
    def is_last(self) -> bool:
        return self.results is None

    def parameters(self) -> Iterator[nn.Parameter]:
        yield from self.module.parameters()

    def places(self, first: int) -> Mapping[int, Linear]:
        """Return its linear layers by the place that adapters add to.

        Args:
            first: place of its gates.
        """
        linears = (self.down, self.up, self.results)
        return {place: linear for place, linear in enumerate(linears, first) if linear is not None}

    def build(self, kept: KeptTensors) -> StreamMix:
        """Describe it to the kernels.

        Args:
            kept: keeps its numbers.

        Raises:
            UnsupportedLayerError: its weights are of a type that the kernels do not read.
        """
        mix = StreamMix(logits=no_matrix(), num_streams=self.num_streams, is_last=int(self.is_last))
        mix.norm, mix.norm_epsilon = kept.keep(self.norm.weight), self.norm.epsilon
        mix.gates = addressof(kept.own(StreamGates(matrix_of(self.down), matrix_of(self.up))))
        if self.results is not None:
            mix.logits, mix.bias = matrix_of(self.results), kept.keep(torch.zeros(self.num_streams))
            mix.magnitude, mix.scales[1] = MAGNITUDE, 1 / self.num_streams
        return mix


def flat_streams(layer: nn.Module) -> int:
    """Return the rows of a token that lie side by side in a layer's hidden states; 0 if they do not."""
    found = [GatedStreamParts.find(child) for child in layer.children()]
    return next((parts.num_streams for parts in found if parts is not None), 0)
