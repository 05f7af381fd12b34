"""ModuleMixer: a family's own module as the mixer of a layer whose other parts are native."""

from __future__ import annotations

from typing import Any

import torch

from server.kernels.native.structures.mixers import MixerKind
from server.model.blocks.capture import LayerCapture
from server.model.blocks.errors import UnsupportedLayerError
from server.model.blocks.mixer import LayerPlace, Mixer, MixerStep, relative_error
from server.model.blocks.module.declaration import Argument, OwnModule, Role
from server.model.blocks.tolerances import TOLERANCE
from server.model.program import Target
from server.model.recurrent.recurrent_modules import ModuleCall
from server.model.recurrent.states import AttentionPassThrough


class ModuleMixer(Mixer):
    """Calls the module on the normed rows of a step, and returns what it adds to them.

    The border between native parts and modules: the residual stream stays in float32, and so does every sum that goes
    into it. The module gets the normed rows rounded once to the model's dtype, which is what transformers' own norm
    returns, and its result is widened before it is added. So a hybrid rounds less than the modules alone, which round
    the residual stream after each addition.

    Args:
        module: of the family.
        declared: its arguments.
        place: its layer.
    """

    kind = MixerKind.EXTERNAL
    target = Target.MODULES

    def __init__(self, module: Any, declared: OwnModule, place: LayerPlace):
        super().__init__(module, place.index, None)
        self._dtype, self._declared = place.dtype, declared

    def for_trial(self, captured: LayerCapture, num_tokens: int) -> Mixer:
        del num_tokens
        assert captured.mixer is not None
        return _RecordedMixer(captured.mixer, self.index)

    def mix_outside(self, normed: torch.Tensor, step: MixerStep | None) -> torch.Tensor:
        assert step is not None
        given = normed.to(self._dtype).unsqueeze(0)
        args = [_filled(value, given, step) for value in self._declared.arguments]
        named = {name: _filled(value, given, step) for name, value in self._declared.named.items()}
        return rows_of(self.module(*args, **named))


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


def declare_call(captured: LayerCapture, name: str, place: LayerPlace) -> OwnModule:
    """Return how a layer calls its mixer.

    Args:
        captured: a call of the layer.
        name: of the mixer's module in it.
        place: of the layer.

    Raises:
        UnsupportedLayerError: the module takes something else than rows, states and positions.
    """
    call = captured.mixer
    if call is None:
        raise UnsupportedLayerError("a layer does not call its mixer")
    rows = next((value for value in (*call.args, *call.kwargs.values()) if isinstance(value, torch.Tensor)), None)
    dtype = place.dtype if rows is None else rows.dtype  # of the capture
    step = MixerStep(place.rotary, range(len(captured.given)), dtype, None)
    arguments = tuple(_argument(value, captured, step) for value in call.args)
    named = {key: _argument(value, captured, step) for key, value in call.kwargs.items()}
    if [*arguments, *named.values()].count(Role.ROWS) != 1:
        raise UnsupportedLayerError(f"its {type(call.module).__name__} takes other inputs than one of rows")
    return OwnModule(name, arguments, named)


def _argument(value: Any, captured: LayerCapture, step: MixerStep) -> Argument:
    """Return a constant argument, or the role of one that changes."""
    if value is None or isinstance(value, bool | int | float | str):
        constant: Argument = value
        return constant
    if isinstance(value, AttentionPassThrough):
        return Role.CACHE
    if isinstance(value, torch.Tensor) and value.shape == (1, len(captured.given), captured.hidden_size):
        return Role.ROWS
    if isinstance(value, torch.Tensor) and torch.equal(value, step.positions):
        return Role.POSITIONS
    if captured.positions is not None and value is captured.positions and _are_equal(step.angles, value):
        return Role.ANGLES
    raise UnsupportedLayerError(f"its mixer takes a {type(value).__name__} of unknown use")


def _filled(value: Argument, rows: torch.Tensor, step: MixerStep) -> Any:
    if not isinstance(value, Role):
        return value
    if value is Role.ROWS:
        return rows
    if value is Role.CACHE:
        return step.states
    return step.angles if value is Role.ANGLES else step.positions


def _are_equal(own: Any, given: Any) -> bool:
    """Return whether two pairs of cosines and sines are the same numbers."""
    pairs = [own, given]
    if not all(isinstance(pair, tuple) and len(pair) == 2 for pair in pairs):  # noqa: PLR2004
        return False
    return all(torch.equal(one, other) for one, other in zip(own, given, strict=True))
