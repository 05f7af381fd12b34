"""Biases of attention scores by the distance from a token back to a key."""

from __future__ import annotations

from ctypes import addressof
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import nn
from torch.nn import functional as F

from server.kernels.native.structures.matrices import Size
from server.kernels.native.structures.mixers import RelativeBiases
from server.model.blocks.kept_tensors import KeptTensors
from server.model.blocks.linears import LINEARS, Linear, matrix_of

PROJECTION, BIASES, PROFILES = "r_proj", "rel_logits_proj", "proj"  # names of the parts in an attention
TOLERANCE = 1e-5  # error of a sample, relative to its largest number


@dataclass(frozen=True)
class RelativeParts:
    """The parts that make biases: sums of profiles, numbers by distance, with weights of each token and head."""

    weights: Linear  # (heads * profiles, hidden)
    profiles: nn.Parameter  # (profiles, distances)

    @classmethod
    def find(cls, attention: nn.Module) -> Self | None:
        """Return the parts of an attention's biases; None if it has none that are known."""
        weights, module = getattr(attention, PROJECTION, None), getattr(attention, BIASES, None)
        profiles = getattr(module, PROFILES, None)
        if not isinstance(weights, LINEARS) or weights.bias is not None or not isinstance(profiles, nn.Parameter):
            return None
        is_known = profiles.ndim == 2 and [*module.parameters()] == [profiles]  # noqa: PLR2004
        return cls(weights, profiles) if is_known and _sums_profiles(module, profiles) else None

    @property
    def num_profiles(self) -> int:
        return self.profiles.shape[0]


class NativeRelativeBiases:
    """The biases of a layer as the native kernels make them."""

    def __init__(self, parts: RelativeParts):
        kept = self._kept = KeptTensors()
        block = int(Size.CACHE_BLOCK)
        by_distance = F.pad(parts.profiles.detach().float().flip(1), (block, block))  # the furthest distance first
        self._spec = RelativeBiases(
            weights=matrix_of(parts.weights),
            profiles=kept.keep(by_distance),
            num_profiles=parts.num_profiles,
            extent=parts.profiles.shape[1],
        )

    @property
    def address(self) -> int:
        return addressof(self._spec)


def _sums_profiles(module: Any, profiles: nn.Parameter) -> bool:
    """Return whether a module sums profiles by distance, and has no bias beyond their last one."""
    count, extent = profiles.shape
    random = torch.Generator().manual_seed(0)
    weights = torch.randn((1, 1, 1, count), generator=random).to(profiles)
    distances = torch.arange(-2, extent + 2)  # (keys,)
    try:
        with torch.inference_mode():
            found = module(weights, torch.tensor([extent + 2]), extent + 2 - distances)
    except (RuntimeError, TypeError, ValueError, AttributeError):  # a forward of another kind
        return False
    wanted = F.pad(weights.double().flatten() @ profiles.detach().double(), (2, 2))
    if not isinstance(found, torch.Tensor) or found.numel() != len(wanted):
        return False
    error = (found.double().flatten() - wanted).abs().max()
    rounding = max(TOLERANCE, 2 * torch.finfo(profiles.dtype).eps)
    return bool(error <= rounding * wanted.abs().max())
