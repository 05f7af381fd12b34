"""Biases of attention scores by the distance from a token back to a key."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from ctypes import addressof
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import nn
from torch.nn import functional as F

from server.kernels.native.structures.matrices import Size
from server.kernels.native.structures.mixers import RelativeBiases
from server.model.blocks.grouped_attention.head_limits import HeadLimit, limited
from server.model.blocks.kept_tensors import KeptTensors
from server.model.blocks.linears import LINEARS, Linear, matrix_of

PROJECTION, BIASES, PROFILES = "r_proj", "rel_logits_proj", "proj"  # names of the parts in an attention
WITH_LIMIT, LINEAR, NORM = "relative_position_bias", "linear", "norm"  # of a module that has all parts, and a limit
TOLERANCE = 1e-5  # error of a sample, relative to its largest number
SAMPLE_INPUTS = 8  # of a linear layer in a copy


@dataclass(frozen=True)
class RelativeParts:
    """The parts that make biases: sums of profiles, numbers by distance, with weights of each token and head."""

    weights: Linear  # (heads * profiles, hidden)
    profiles: nn.Parameter  # (profiles, distances)
    limit: HeadLimit | None = None  # of the weights of each head

    @classmethod
    def find(cls, attention: nn.Module) -> Self | None:
        """Return the parts of an attention's biases; None if it has none that are known."""
        if hasattr(attention, WITH_LIMIT):
            return cls._find_with_limit(getattr(attention, WITH_LIMIT))
        weights, module = getattr(attention, PROJECTION, None), getattr(attention, BIASES, None)
        profiles = getattr(module, PROFILES, None)
        if not isinstance(weights, LINEARS) or weights.bias is not None or not isinstance(profiles, nn.Parameter):
            return None
        is_known = profiles.ndim == 2 and [*module.parameters()] == [profiles]  # noqa: PLR2004
        return cls(weights, profiles) if is_known and _sums_profiles(module, profiles) else None

    @classmethod
    def _find_with_limit(cls, module: Any) -> Self | None:
        weights, profiles = getattr(module, LINEAR, None), getattr(module, PROFILES, None)
        if not isinstance(weights, LINEARS) or weights.bias is not None or not isinstance(profiles, nn.Parameter):
            return None
        limit = HeadLimit.find(getattr(module, NORM, None), profiles.shape[0])
        if limit is None or {*module.parameters()} != {*weights.parameters(), profiles, *limit.module.parameters()}:
            return None
        found = cls(weights, profiles, limit)
        return found if _sums_limited_profiles(module, found) else None

    def parameters(self) -> Iterator[nn.Parameter]:
        yield from self.weights.parameters()
        yield self.profiles
        if self.limit is not None:
            yield from self.limit.module.parameters()

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
        if parts.limit is not None:
            self._spec.scales, self._spec.limit = kept.keep(parts.limit.scales), parts.limit.limit

    @property
    def address(self) -> int:
        return addressof(self._spec)


def _sums_profiles(module: Any, profiles: nn.Parameter) -> bool:
    """Return whether a module, with other profiles, sums them by distance and has no bias beyond the last one."""
    count, extent = profiles.shape
    random = torch.Generator().manual_seed(0)
    weights = torch.randn((1, 1, 1, count), generator=random)
    sample, distances = torch.randn((count, extent), generator=random), torch.arange(-2, extent + 2)  # (keys,)
    copied = deepcopy(module).to("cpu", torch.float32)
    setattr(copied, PROFILES, nn.Parameter(sample, requires_grad=False))
    try:
        with torch.inference_mode():
            found = copied(weights, torch.tensor([extent + 2]), extent + 2 - distances)
    except (RuntimeError, TypeError, ValueError, AttributeError):  # a forward of another kind
        return False
    wanted = F.pad(weights.double().flatten() @ sample.double(), (2, 2))
    if not isinstance(found, torch.Tensor) or found.numel() != len(wanted):
        return False
    error = (found.double().flatten() - wanted).abs().max()
    return bool(error <= TOLERANCE * wanted.abs().max())


def _sums_limited_profiles(module: Any, parts: RelativeParts) -> bool:
    """Return whether a copy of a module with other numbers sums profiles by limited weights of tokens."""
    assert parts.limit is not None
    random, (count, extent) = torch.Generator().manual_seed(0), parts.profiles.shape
    linear = torch.randn((parts.weights.out_features, SAMPLE_INPUTS), generator=random) * SAMPLE_INPUTS**-0.5
    small = nn.Linear(SAMPLE_INPUTS, len(linear), bias=False)
    small.weight = nn.Parameter(linear, requires_grad=False)
    copied = deepcopy(module, {id(parts.weights): small}).to("cpu", torch.float32)
    profiles = torch.randn((count, extent), generator=random)
    copied.proj = nn.Parameter(profiles, requires_grad=False)
    row = torch.randn((1, 1, SAMPLE_INPUTS), generator=random) * parts.limit.limit
    distances = torch.arange(-2, extent + 2)
    try:
        with torch.inference_mode():
            found = copied(row, distances.unsqueeze(0), torch.zeros((1, 1), dtype=torch.long))  # (1, heads, 1, keys)
    except (RuntimeError, TypeError, ValueError, AttributeError):  # a forward of another kind
        return False
    weights = (linear @ row.flatten()).view(-1, count)
    if parts.limit.scales is not None:
        weights = weights * parts.limit.scales.view(weights.shape).cpu()
    wanted = F.pad(limited(weights, parts.limit.limit) @ profiles, (2, 2))  # (heads, keys)
    if not isinstance(found, torch.Tensor) or found.shape != (1, len(wanted), 1, len(distances)):
        return False
    return float((found[0, :, 0] - wanted).abs().max()) <= TOLERANCE * float(wanted.abs().max())
