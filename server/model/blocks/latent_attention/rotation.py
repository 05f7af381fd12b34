"""Finds how a layer rotates a part of its queries and of its shared key, by a comparison with those of the modules.

The output of attention does not show it: where all keys have about the same weight, any rotation gives that output.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from server.kernels.native.structures.mixers import RopeKind
from server.model.blocks.errors import UnsupportedLayerError
from server.model.blocks.mixer import MixerTrial, relative_error
from server.model.blocks.rotated_rows import rotated, rows_of

if TYPE_CHECKING:
    from server.model.blocks.latent_attention.parts import LatentAttentionParts

WAYS = (  # kinds of rotary positions, and whether the first of all pairs precede the second ones in the result
    (RopeKind.HALVES, False),
    (RopeKind.INTERLEAVED, False),
    (RopeKind.INTERLEAVED, True),  # queries and keys alike, which does not change their products
    (RopeKind.NONE, False),
)
SAME = 1e-5  # keys that differ no more, relative to their norm, were rotated in the same way


@dataclass(frozen=True)
class Rotation:
    """The result of one kind of rotary positions."""

    kind: RopeKind
    error: float  # of the shared key, or of queries where that is another layer's
    key: torch.Tensor  # (tokens, rope_dim), or queries
    query_error: float
    is_sorted: bool  # the first numbers of all pairs come before the second ones


@dataclass(frozen=True)
class Rotations:
    """The results of the kinds, the nearest to the modules first; of equally near ones, the likelier is first."""

    found: Sequence[Rotation]
    latent_error: float  # of the part of keys that is made from latents

    @property
    def best(self) -> Rotation:
        return self.found[0]

    def check(self, tolerance: float) -> None:
        """Raise ``UnsupportedLayerError`` if the modules compute something else, or keys do not show what.

        Args:
            tolerance: relative error.
        """
        best, *others = self.found
        if not best.key.any():
            raise UnsupportedLayerError("its keys are zero, which does not show how they are rotated")
        if not self.latent_error < tolerance:
            raise UnsupportedLayerError("its latents are normed or expanded in another way")
        if not best.query_error < tolerance:
            raise UnsupportedLayerError("its queries are normed or rotated in another way")
        if not best.error < tolerance:
            raise UnsupportedLayerError("its keys are normed or rotated in another way")
        if any(each.error < tolerance and relative_error(each.key, best.key) > SAME for each in others):
            raise UnsupportedLayerError("its keys are rotated too little to show how")


def rotations(parts: LatentAttentionParts, trial: MixerTrial, scales: torch.Tensor) -> Rotations:
    """Compare queries and keys of a call of the modules with those of each kind of rotary positions.

    Args:
        scales: of the queries of each token, ``(1 or heads, tokens)``.

    Raises:
        UnsupportedLayerError: the module was called in an unknown way.
    """
    captured, nope, rank = trial.captured, parts.expansion.nope_dim, parts.expansion.rank
    rows = rows_of(trial)
    with torch.inference_mode():
        queries, latents = parts.projected(rows, captured)
        keys = parts.expansion.expand(latents[:, :rank]).view(len(rows), len(captured.keys), -1)[..., :nope]
    if captured.queries.shape[0] * captured.queries.shape[2] != queries.shape[1]:
        raise UnsupportedLayerError("its attention has another number of queries than its projections give")
    query = queries.float().view(len(rows), len(captured.queries), -1).transpose(0, 1)  # (heads, tokens, dim)
    query = query * scales.unsqueeze(-1)
    latent_error = max(
        relative_error(keys.float().transpose(0, 1), captured.keys[..., :nope]),
        relative_error(query[..., :nope], captured.queries[..., :nope]),
    )
    wanted_queries, wanted_keys, found = captured.queries[..., nope:], captured.keys[..., nope:], []
    has_positions = captured.positions is not None and parts.rope_dim > 0
    for kind, is_sorted in WAYS if has_positions else [(RopeKind.NONE, False)]:
        turned = rotated(query[..., nope:], kind, trial.positions, is_sorted=is_sorted)
        error = relative_error(turned, wanted_queries)
        if parts.latent is None or not parts.rope_dim:  # its keys are rotated elsewhere, or not at all
            found.append(Rotation(kind, error, turned if parts.rope_dim else query, error, is_sorted))
            continue
        key = rotated(latents[:, rank:].float(), kind, trial.positions, is_sorted=is_sorted)
        key_error = relative_error(key.expand_as(wanted_keys), wanted_keys)
        found.append(Rotation(kind, key_error, key, error, is_sorted))
    return Rotations(sorted(found, key=lambda each: each.error), latent_error)
