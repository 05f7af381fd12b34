"""The rows that a mixer's module got, and rotary positions as the kernels apply them."""

from __future__ import annotations

import torch

from server.kernels.native.structures.mixers import RopeKind
from server.model.blocks.capture import LayerCapture
from server.model.blocks.errors import UnsupportedLayerError
from server.model.blocks.mixer import MixerTrial
from server.model.blocks.workspace import Positions


def rows_of(trial: MixerTrial) -> torch.Tensor:
    """Return the rows that the module got, ``(tokens, hidden)``."""
    return rows_in(trial.captured)


def rows_in(captured: LayerCapture) -> torch.Tensor:
    """Return the rows that the mixer of a layer got in a call, ``(tokens, hidden)``."""
    call = captured.mixer
    values = () if call is None else (*call.args, *call.kwargs.values())
    wanted = (1, len(captured.given), captured.hidden_size)
    rows = [value for value in values if isinstance(value, torch.Tensor) and value.shape == wanted]
    if len(rows) != 1:
        raise UnsupportedLayerError("its attention takes other inputs than one of rows")
    return rows[0][0]


def rotated(
    x: torch.Tensor, kind: RopeKind, positions: Positions, *, is_sorted: bool = False, is_last: bool = False
) -> torch.Tensor:
    """Rotate the first numbers of ``(..., tokens, dim)``, as ``rotate`` of ``grouped_attention/attention.inc`` does.

    Args:
        is_sorted: whether the first numbers of all pairs come before the second ones in the result.
        is_last: whether the last numbers are rotated instead.
    """
    if kind is RopeKind.NONE:
        return x
    cosines, sines = positions.angles(x.shape[-2])
    x, pairs = x.clone(), cosines.shape[1]
    if is_last:
        kept = x[..., : -2 * pairs]
        return torch.cat([kept, rotated(x[..., -2 * pairs :], kind, positions, is_sorted=is_sorted)], -1)
    step = slice(0, 2 * pairs, 2), slice(1, 2 * pairs, 2)
    one, other = step if kind is RopeKind.INTERLEAVED else (slice(0, pairs), slice(pairs, 2 * pairs))
    first, second = x[..., one].clone(), x[..., other].clone()
    if is_sorted:
        one, other = slice(0, pairs), slice(pairs, 2 * pairs)
    x[..., one], x[..., other] = first * cosines - second * sines, second * cosines + first * sines
    return x
