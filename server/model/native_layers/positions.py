"""Finds the columns of a model's tables of cosines and sines that its layers rotate by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from server.model.blocks.capture import LayerCapture
from server.model.blocks.errors import UnsupportedLayerError
from server.model.blocks.layer import NativeLayer
from server.model.blocks.layer_trial import LayerTrial
from server.model.blocks.mixer import RotaryMixer
from server.model.blocks.workspace import PairAngles, Positions


def find_positions(
    trial: LayerTrial,
    rotary: Any,
    layers: Sequence[NativeLayer],
    captured: Sequence[LayerCapture],
    longest: int,
    tolerance: float,
) -> Positions:
    """Return the positions with which layers come nearest to their modules' keys, and set them in the trial's calls.

    Args:
        rotary: the model's module that computes cosines and sines; None if it has none.
        longest: tokens of the longest sequence.
        tolerance: relative error of keys.

    Raises:
        UnsupportedLayerError: the kernels do not have such positions.
    """
    found = [
        (layer, mixer, each)
        for layer, each in zip(layers, captured, strict=True)
        if isinstance(mixer := layer.mixer, RotaryMixer)
    ]
    first = found[0][2].positions if found else None
    if first is None:
        return Positions(None, PairAngles.ALL, longest)
    is_pair = isinstance(first, tuple) and len(first) == 2  # noqa: PLR2004
    is_complex = isinstance(first, torch.Tensor) and first.is_complex()  # cosines and sines as one table
    if not (is_pair or is_complex) or any(each.positions is not first for _, _, each in found):
        raise UnsupportedLayerError("its layers have positions of several kinds")
    if rotary is None or getattr(rotary, "rope_type", "default") == "dynamic":
        raise UnsupportedLayerError("its rotary positions depend on the length of a sequence")
    candidates = [Positions(rotary, angles, longest) for angles in PairAngles]
    for positions in candidates:
        trial.set_positions(positions)  # which finds the numbers that are rotated
    most = min(mixer.most_rotated for _, mixer, _ in found)
    candidates = [positions for positions in candidates if positions.rotary_dim <= most]
    if not candidates:
        raise UnsupportedLayerError(f"its rotary positions have more than the {most} numbers of a head")
    for layer, mixer, each in found:
        errors = []
        for positions in candidates:
            trial.set_positions(positions)
            errors.append(mixer.rotation_error(trial.of_mixer(layer, each, positions, tolerance)))
        best = min(range(len(errors)), key=lambda index: errors[index][0])
        if errors[best][1]:
            break
    trial.set_positions(candidates[best])
    return candidates[best]
