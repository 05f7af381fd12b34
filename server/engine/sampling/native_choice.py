"""The choice of the tokens of all rows of a step in one call of the native kernels."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import c_int32, sizeof
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from server.kernels.native.structures.sampling import RowSampling, SamplingCall

if TYPE_CHECKING:
    import torch

    from server.engine.sampling.sampling_state import SamplingState
    from server.kernels.native.library import Kernels

_ROW = np.dtype(  # the random number of a row, in place
    {"names": ["draw"], "formats": ["f8"], "offsets": [RowSampling.draw.offset], "itemsize": sizeof(RowSampling)}
)


def choose_natively(
    kernels: Kernels,
    logits: torch.Tensor,
    states: Sequence[SamplingState],
    draws: npt.NDArray[np.float64],
    adjusted: Sequence[int] = (),
) -> list[int | None]:
    """Choose the token of each row, by the filters and the order of ``sampler.sample``.

    Args:
        logits: float32 ``(rows, vocabulary)`` after all changes, the numbers of a row next to each other.
        draws: the random number of each row, in ``[0, 1)``.
        adjusted: rows that were changed, so that some of their logits may be ``-inf``.
    """
    count, size = logits.shape
    rows = (RowSampling * count)(*[state.row for state in states])
    np.frombuffer(memoryview(rows), _ROW)["draw"] = draws
    for index in adjusted:
        rows[index].has_masks = True
    tokens = (c_int32 * count)()
    kernels.sample(SamplingCall(logits.data_ptr(), rows, tokens, count, size, logits.stride(0)))
    return [token if token >= 0 else None for token in tokens]
