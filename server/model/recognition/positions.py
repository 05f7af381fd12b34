"""Finds the kinds of rotary positions of a model, and the columns of their tables that its layers rotate by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from server.model.blocks.capture import Capture, LayerCapture, RotaryCall
from server.model.blocks.errors import UnsupportedLayerError
from server.model.blocks.layer import NativeLayer
from server.model.blocks.layer_trial import LayerTrial
from server.model.blocks.mixer import RotaryMixer
from server.model.blocks.workspace import PairAngles, Positions

RotaryLayer = tuple[NativeLayer, RotaryMixer, LayerCapture]


class LayerPositions:
    """The rotary positions of each layer of a model.

    Args:
        trial: runs its layers.
        layers: of the model.
        captured: a pass over some tokens.
        longest: tokens of the longest sequence.
        tolerance: relative error of keys.

    Raises:
        UnsupportedLayerError: the kernels do not have such positions.
    """

    def __init__(
        self, trial: LayerTrial, layers: Sequence[NativeLayer], captured: Capture, longest: int, tolerance: float
    ):
        self._trial, self._longest, self._tolerance = trial, longest, tolerance
        none = Positions(None, PairAngles.ALL, longest)
        self.kinds: list[Positions] = []
        self._by_layer: dict[int, int] = {}
        groups: list[tuple[Any, list[RotaryLayer]]] = []
        for layer, each in zip(layers, captured.layers, strict=True):
            if not isinstance(layer.mixer, RotaryMixer) or each.positions is None or not layer.mixer.most_rotated:
                continue
            index = next((index for index, (angles, _) in enumerate(groups) if angles is each.positions), len(groups))
            if index == len(groups):
                groups.append((each.positions, []))
            groups[index][1].append((layer, layer.mixer, each))
            self._by_layer[layer.spec.index] = index
        self.calls: list[RotaryCall] = []
        for angles, found in groups:
            call = next((call for call in captured.rotaries if call.output is angles), None)
            self.kinds.append(self._find(call, angles, found))
            if call is not None:
                self.calls.append(call)
        self.kinds = self.kinds or [none]

    def kind_of(self, layer: NativeLayer) -> int:
        """Return the number of a layer's kind of positions."""
        return self._by_layer.get(layer.spec.index, 0)

    def _find(self, call: RotaryCall | None, angles: Any, found: Sequence[RotaryLayer]) -> Positions:
        """Return the positions with which layers come nearest to their modules' keys."""
        is_pair = isinstance(angles, tuple) and len(angles) == 2  # noqa: PLR2004
        is_complex = isinstance(angles, torch.Tensor) and angles.is_complex()  # cosines and sines as one table
        if call is None or not (is_pair or is_complex):
            raise UnsupportedLayerError("its layers have positions of an unknown kind")
        rope_type = getattr(call.module, "rope_type", "default")
        if "dynamic" in (rope_type.values() if isinstance(rope_type, dict) else (rope_type,)):
            raise UnsupportedLayerError("its rotary positions depend on the length of a sequence")
        candidates = [Positions(call.angles, columns, self._longest) for columns in PairAngles]
        for positions in candidates:
            self._trial.set_positions(positions)  # which finds the numbers that are rotated
        most = min(mixer.most_rotated for _, mixer, _ in found)
        candidates = [positions for positions in candidates if positions.rotary_dim <= most]
        if not candidates:
            raise UnsupportedLayerError(f"its rotary positions have more than the {most} numbers of a head")
        for layer, mixer, each in found:
            errors = []
            for positions in candidates:
                self._trial.set_positions(positions)
                errors.append(mixer.rotation_error(self._trial.of_mixer(layer, each, positions, self._tolerance)))
            best = min(range(len(errors)), key=lambda index: errors[index][0])
            if errors[best][1]:
                break
        return candidates[best]
