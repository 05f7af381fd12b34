"""ModuleMixer: a family's own module as the mixer of a layer whose other parts are native."""

from __future__ import annotations

from enum import Enum
from typing import Any

import torch

from server.kernels.native.structures.mixers import MixerKind
from server.model.blocks.capture import LayerCapture
from server.model.blocks.errors import UnsupportedLayerError
from server.model.blocks.mixer import LayerPlace, Mixer, MixerStep, relative_error
from server.model.blocks.tolerances import TOLERANCE
from server.model.program import Target
from server.model.recurrent.recurrent_modules import ModuleCall
from server.model.recurrent.states import AttentionPassThrough

SETTING = bool | int | float | str | None  # a constant argument


class _Role(Enum):
    """An argument that is another one in each step."""

    ROWS = "the normed rows"
    CACHE = "the states of recurrent layers"
    ANGLES = "cosines and sines of the rows' positions"
    POSITIONS = "the rows' positions"


class ModuleMixer(Mixer):
    """Calls the module on the normed rows of a step, and returns what it adds to them.

    The border between native parts and modules: the residual stream stays in float32, and so does every sum that goes
    into it. The module gets the normed rows rounded once to the model's dtype, which is what transformers' own norm
    returns, and its result is widened before it is added. So a hybrid rounds less than the modules alone, which round
    the residual stream after each addition.

    Args:
        captured: a call of the module in the model.
        place: its layer.

    Raises:
        UnsupportedLayerError: it takes or returns something else than rows, states and positions.
    """

    kind = MixerKind.EXTERNAL
    target = Target.MODULES

    def __init__(self, captured: LayerCapture, place: LayerPlace):
        call = captured.mixer
        if call is None:
            raise UnsupportedLayerError("a layer does not call its mixer")
        super().__init__(call.module, place.index, None)
        self._dtype = place.dtype
        count, size = len(captured.given), captured.hidden_size
        rows = next((value for value in (*call.args, *call.kwargs.values()) if isinstance(value, torch.Tensor)), None)
        dtype = place.dtype if rows is None else rows.dtype  # of the capture
        step = MixerStep(place.rotary, range(count), dtype, None)
        self._args = [self._part(value, count, size, captured.positions, step) for value in call.args]
        self._kwargs = {
            name: self._part(value, count, size, captured.positions, step) for name, value in call.kwargs.items()
        }
        if [*self._args, *self._kwargs.values()].count(_Role.ROWS) != 1:
            raise UnsupportedLayerError(f"its {type(call.module).__name__} takes other inputs than one of rows")

    def for_trial(self, captured: LayerCapture, num_tokens: int) -> Mixer:
        del num_tokens
        assert captured.mixer is not None
        return _RecordedMixer(captured.mixer, self.index)

    def mix_outside(self, normed: torch.Tensor, step: MixerStep | None) -> torch.Tensor:
        assert step is not None
        given = normed.to(self._dtype).unsqueeze(0)
        args = [self._filled(value, given, step) for value in self._args]
        output = self.module(*args, **{name: self._filled(value, given, step) for name, value in self._kwargs.items()})
        return rows_of(output)

    def _part(self, value: Any, count: int, size: int, angles: Any, step: MixerStep) -> SETTING | _Role:
        """Return a constant argument, or the role of one that changes."""
        if value is None or isinstance(value, bool | int | float | str):
            constant: SETTING = value
            return constant
        if isinstance(value, AttentionPassThrough):
            return _Role.CACHE
        if isinstance(value, torch.Tensor) and value.shape == (1, count, size):
            return _Role.ROWS
        if isinstance(value, torch.Tensor) and torch.equal(value, step.positions):
            return _Role.POSITIONS
        if angles is not None and value is angles and _are_equal(step.angles, value):
            return _Role.ANGLES
        raise UnsupportedLayerError(f"its {type(self.module).__name__} takes a {type(value).__name__} of unknown use")

    def _filled(self, value: SETTING | _Role, rows: torch.Tensor, step: MixerStep) -> Any:
        if not isinstance(value, _Role):
            return value
        if value is _Role.ROWS:
            return rows
        if value is _Role.CACHE:
            return step.states
        return step.angles if value is _Role.ANGLES else step.positions


class _RecordedMixer(Mixer):
    """Adds what a module added in a recorded call.

    Raises:
        UnsupportedLayerError: the module got something else than normed rows.
    """

    kind = MixerKind.EXTERNAL
    target = Target.MODULES

    def __init__(self, call: ModuleCall, index: int):
        super().__init__(call.module, index, None)
        self._call = call

    def for_trial(self, captured: LayerCapture, num_tokens: int) -> Mixer:
        del captured, num_tokens
        return self

    def mix_outside(self, normed: torch.Tensor, step: MixerStep | None) -> torch.Tensor:
        del step
        values = (*self._call.args, *self._call.kwargs.values())
        given = [value for value in values if isinstance(value, torch.Tensor)]
        if not any(value.shape[1:] == normed.shape and relative_error(value[0], normed) < TOLERANCE for value in given):
            raise UnsupportedLayerError(f"its {self.name} gets something else than normed rows")
        return rows_of(self._call.output)


def rows_of(output: Any) -> torch.Tensor:
    """Return the output of a mixer as float32 ``(rows, hidden)``."""
    first: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return first[0].float()


def _are_equal(own: Any, given: Any) -> bool:
    """Return whether two pairs of cosines and sines are the same numbers."""
    pairs = [own, given]
    if not all(isinstance(pair, tuple) and len(pair) == 2 for pair in pairs):  # noqa: PLR2004
        return False
    return all(torch.equal(one, other) for one, other in zip(own, given, strict=True))
