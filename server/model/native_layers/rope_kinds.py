"""Finds how layers rotate queries and keys, by a comparison of the rotated ones with those of the modules.

The output of attention does not show it: where all keys have about the same weight, any rotation gives that output.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from server.kernels.native.structures.layers import RopeKind
from server.model.native_layers.capture import LayerCapture
from server.model.native_layers.errors import UnsupportedLayerError
from server.model.native_layers.layer_trial import LayerTrial, relative_error
from server.model.native_layers.spec import NativeLayer
from server.model.native_layers.workspace import PairAngles, Positions

SAME = 1e-5  # keys that differ no more, relative to their norm, were rotated in the same way


class _Rotation(NamedTuple):
    error: float  # of its keys
    kind: RopeKind
    keys: torch.Tensor  # (kv_heads, tokens, key_dim)


def find_positions(
    trial: LayerTrial, rotary: Any, layers: Sequence[NativeLayer], captured: Sequence[LayerCapture], longest: int
) -> Positions:
    """Return the positions with which layers come nearest to their modules' keys, and set them in the trial's calls.

    Args:
        rotary: the model's module that computes cosines and sines; None if it has none.
        longest: tokens of the longest sequence.

    Raises:
        UnsupportedLayerError: the kernels do not have such positions.
    """
    pairs = [(layer, each) for layer, each in zip(layers, captured, strict=True) if each.mixer is None]
    if not pairs:
        return Positions(None, PairAngles.ALL, longest)
    first = pairs[0][1].positions
    if first is None:
        return Positions(None, PairAngles.ALL, longest)
    is_pair = isinstance(first, tuple) and len(first) == 2  # noqa: PLR2004
    if not is_pair or any(each.positions is not first for _, each in pairs):
        raise UnsupportedLayerError("its layers have positions of several kinds")
    if rotary is None or getattr(rotary, "rope_type", "default") == "dynamic":
        raise UnsupportedLayerError("its rotary positions depend on the length of a sequence")
    candidates = [Positions(rotary, angles, longest) for angles in PairAngles]
    for positions in candidates:
        trial.set_positions(positions)  # which finds the numbers that are rotated
    key_dim = min(layer.attention.key_dim for layer, _ in pairs)
    candidates = [positions for positions in candidates if positions.rotary_dim <= key_dim]
    if not candidates:
        raise UnsupportedLayerError(f"its rotary positions have more than the {key_dim} numbers of a head")
    for layer, each in pairs:
        found = []
        for positions in candidates:
            trial.set_positions(positions)
            found.append(_rotations(trial, layer, each, positions)[0])
        best = min(range(len(found)), key=lambda index: found[index].error)
        if found[best].kind != RopeKind.NONE:
            break
    trial.set_positions(candidates[best])
    return candidates[best]


def fit_rope(
    trial: LayerTrial, layer: NativeLayer, captured: LayerCapture, positions: Positions, tolerance: float
) -> None:
    """Set the kind of rotary positions in a layer's attention.

    Args:
        positions: those of the trial's calls.
        tolerance: relative error of queries and keys.

    Raises:
        UnsupportedLayerError: the layer rotates in another way, or its keys do not show how.
    """
    if not captured.keys.any():
        raise UnsupportedLayerError("its keys are zero, which does not show how they are rotated")
    best, *others = _rotations(trial, layer, captured, positions)
    layer.attention.rope_kind = best.kind
    queries = trial.queries(layer, captured)
    if queries.shape != captured.queries.shape or not relative_error(queries, captured.queries) < tolerance:
        raise UnsupportedLayerError("its queries are normed or rotated in another way")
    if not best.error < tolerance:
        raise UnsupportedLayerError("its keys are normed or rotated in another way")
    if any(each.error < tolerance and relative_error(each.keys, best.keys) > SAME for each in others):
        raise UnsupportedLayerError("its keys are rotated too little to show how")


def _rotations(trial: LayerTrial, layer: NativeLayer, captured: LayerCapture, positions: Positions) -> list[_Rotation]:
    """Return a layer's keys with each kind of rotary positions, the nearest to those of its modules first.

    Of equally near ones, the likelier is first.
    """
    layer.attention.rotary_dim, found = positions.rotary_dim, []
    has_positions = captured.positions is not None
    for kind in (RopeKind.HALVES, RopeKind.INTERLEAVED, RopeKind.NONE) if has_positions else (RopeKind.NONE,):
        layer.attention.rope_kind = kind
        keys = trial.run(layer, captured)
        if keys.shape != captured.keys.shape:
            raise UnsupportedLayerError("its attention has another number of keys than its projections give")
        found.append(_Rotation(relative_error(keys, captured.keys), kind, keys))
    return sorted(found, key=lambda each: each.error)
