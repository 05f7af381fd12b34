"""The choice of the tokens of all rows of a step in one call of the native kernels."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import c_int32
from typing import TYPE_CHECKING

from server.kernels.native.structures.sampling import RowSampling, SamplingCall
from server.model.step import HostLogits

if TYPE_CHECKING:
    from server.engine.sampling.sampling_state import SamplingState
    from server.kernels.native.library import Kernels


def choose_natively(
    kernels: Kernels,
    logits: HostLogits,
    states: Sequence[SamplingState],
    draws: Sequence[float],
    adjusted: Sequence[int] = (),
) -> list[int | None]:
    """Choose the token of each row, by the filters and the order of ``sampler.sample``.

    Args:
        logits: after all changes.
        draws: the random number of each row, in ``[0, 1)``.
        adjusted: rows that were changed, so that some of their logits may be ``-inf``.
    """
    count, size = logits.rows.shape
    rows = (RowSampling * count)(*[state.row for state in states])
    for row, draw in zip(rows, draws, strict=True):
        row.draw = draw
    for index in adjusted:
        rows[index].has_masks = True
    tokens = (c_int32 * count)()
    kernels.sample(SamplingCall(logits.address, rows, tokens, count, size, size))
    return [token if token >= 0 else None for token in tokens]
