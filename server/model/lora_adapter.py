"""A LoRA adapter as the model computes with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch


class ExpertTarget(NamedTuple):
    """One matrix of one routed expert."""

    layer: int
    expert: int
    parameter: str  # of the experts module, such as ``gate_up_proj``


@dataclass(frozen=True, eq=False)
class LoraMatrix:
    """A low-rank addition to some outputs of a matrix: ``y[:, first:first + n] += scale * (x @ down.T) @ up.T``."""

    down: torch.Tensor  # (rank, inputs), plain floats
    up: torch.Tensor  # (n, rank), of the same dtype
    scale: float
    first_output: int = 0


@dataclass(frozen=True, eq=False)
class LoraAdapter:
    """The matrices of an adapter, in memory for as long as a request holds it.

    Args:
        name: under which it is served.
        linears: by the name of a linear layer in the model.
        experts: by expert and matrix. Several additions to one matrix, such as those to its gate and to its up
            projection, have different outputs.
        gate: the vector by which a trained gate scores it, float32 ``(inputs,)``, for each of its linear layers; None
            if no gate chooses it.
    """

    name: str
    linears: Mapping[str, tuple[LoraMatrix, ...]]
    experts: Mapping[ExpertTarget, tuple[LoraMatrix, ...]]
    gate: Mapping[str, torch.Tensor] | None = None
