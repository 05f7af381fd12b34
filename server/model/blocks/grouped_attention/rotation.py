"""Finds how a layer rotates queries and keys, by a comparison of the rotated ones with those of the modules.

The output of attention does not show it: where all keys have about the same weight, any rotation gives that output.
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, NamedTuple

import torch

from server.kernels.native.structures.mixers import RopeKind
from server.model.blocks.errors import UnsupportedLayerError
from server.model.blocks.mixer import MixerTrial, relative_error

if TYPE_CHECKING:
    from server.model.blocks.grouped_attention.mixer import GroupedAttentionMixer

CLEARLY = 1.1  # factor of errors: norms follow the rotation only if their keys are so much nearer
SAME = 1e-5  # keys that differ no more, relative to their norm, were rotated in the same way


class Rotation(NamedTuple):
    """The keys of a layer with one kind of rotary positions."""

    error: float  # of its keys
    kind: RopeKind
    norms_rotated: int  # whether norms of heads follow it
    keys: torch.Tensor  # (kv_heads, tokens, key_dim)

    def as_pair(self) -> tuple[float, bool]:
        """Return the result of ``RotaryMixer.rotation_error``."""
        return self.error, self.kind != RopeKind.NONE


def fit_rotation(mixer: GroupedAttentionMixer, trial: MixerTrial) -> None:
    """Set the kind of rotary positions in an attention.

    Raises:
        UnsupportedLayerError: the layer rotates in another way, or its keys do not show how.
    """
    captured, tolerance = trial.captured, trial.tolerance
    if not captured.keys.any():
        raise UnsupportedLayerError("its keys are zero, which does not show how they are rotated")
    best, *others = rotations(mixer, trial)
    mixer.spec.rope_kind, mixer.spec.norms_rotated = best.kind, best.norms_rotated
    queries = queries_of(mixer, trial)
    if queries.shape != captured.queries.shape or not relative_error(queries, captured.queries) < tolerance:
        raise UnsupportedLayerError("its queries are normed or rotated in another way")
    if not best.error < tolerance:
        raise UnsupportedLayerError("its keys are normed or rotated in another way")
    # A norm before or after the rotation gives almost the same keys, unless its weights differ much within pairs.
    others = [each for each in others if each.norms_rotated == best.norms_rotated]
    if any(each.error < tolerance and relative_error(each.keys, best.keys) > SAME for each in others):
        raise UnsupportedLayerError("its keys are rotated too little to show how")


def rotations(mixer: GroupedAttentionMixer, trial: MixerTrial) -> list[Rotation]:
    """Return a layer's keys with each kind of rotary positions, the nearest to those of its modules first.

    Of equally near ones, the likelier is first.
    """
    spec, wanted, found = mixer.spec, trial.captured.keys, []
    spec.rotary_dim = trial.positions.rotary_dim
    has_positions = trial.captured.positions is not None
    kinds = (RopeKind.HALVES, RopeKind.INTERLEAVED, RopeKind.NONE) if has_positions else (RopeKind.NONE,)
    for kind, norms_rotated in product(kinds, (0, 1) if spec.key_norm and not spec.clip else (0,)):
        if norms_rotated and kind == RopeKind.NONE:
            continue
        spec.rope_kind, spec.norms_rotated = kind, norms_rotated
        bound = mixer.for_trial(trial.captured, trial.num_tokens)
        trial.run(bound)
        if bound.keys.shape != wanted.shape:
            raise UnsupportedLayerError("its attention has another number of keys than its projections give")
        found.append(Rotation(relative_error(bound.keys, wanted), kind, norms_rotated, bound.keys))
    return sorted(found, key=lambda each: each.error * (CLEARLY if each.norms_rotated else 1.0))


def queries_of(mixer: GroupedAttentionMixer, trial: MixerTrial) -> torch.Tensor:
    """Return a layer's queries after the rotation, float32 ``(heads, tokens, key_dim)``.

    They are the keys of a layer in whose cache they take the places of keys.
    """
    bound = mixer.for_queries(trial.num_tokens)
    trial.run(bound)
    queries = mixer.own_queries(bound.keys, trial.captured)
    return queries * torch.tensor([mixer.query_scale(i) for i in range(trial.num_tokens)]).unsqueeze(1)
