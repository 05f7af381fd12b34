"""Finds how an indexer rotates its keys, by a comparison of scores with those of the module."""

from __future__ import annotations

from collections.abc import Callable

import torch

from server.kernels.native.structures.mixers import RopeKind
from server.model.blocks.errors import UnsupportedLayerError
from server.model.blocks.mixer import MixerTrial, relative_error

LEAST_MARGIN = 3.0  # of the error of other ways to rotate keys, by that of the best
SAME = 1e-5  # scores that differ no more, relative to their norm, were made in the same way


def find_index_rotation(
    trial: MixerTrial, dim: int, scores_of: Callable[[RopeKind], torch.Tensor], wanted: torch.Tensor
) -> RopeKind:
    """Return the kind of rotary positions whose scores are those of the module, but for a factor of all.

    Args:
        trial: of the mixer.
        dim: of an index key.
        scores_of: returns the scores with a kind.
        wanted: the module's.

    Raises:
        UnsupportedLayerError: no kind gives them, or several do.
    """
    found = []
    for kind in (RopeKind.HALVES, RopeKind.INTERLEAVED, RopeKind.NONE):
        if kind is not RopeKind.NONE and not 0 < trial.positions.rotary_dim <= dim:
            continue
        scores = scores_of(kind)
        factor = float((scores * wanted).sum() / scores.square().sum().clamp_min(1e-30))
        found.append((relative_error(scores * abs(factor), wanted), kind, scores))
    (error, best, scores), *others = sorted(found, key=lambda each: each[0])
    if not error < trial.tolerance:
        raise UnsupportedLayerError(f"its indexer scores keys in another way, off by {error:.1e}")
    near = min(trial.tolerance, LEAST_MARGIN * error)
    if any(other < near and relative_error(each, scores) > SAME for other, _, each in others):
        raise UnsupportedLayerError("its index keys are rotated too little to show how")
    return best
