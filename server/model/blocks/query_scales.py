"""QueryScales: factors of queries by their positions, which the kernels read in a step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from server.kernels.native.structures.layers import StepCall
from server.model.blocks.errors import UnsupportedLayerError
from server.model.blocks.mixer import Mixer


class QueryScales:
    """A table of factors that grows to the furthest position of any step; none if no mixer reads it.

    Args:
        mixers: of the layers.
        longest: the most positions.

    Raises:
        UnsupportedLayerError: layers scale their queries in different ways.
    """

    STEP = 1024

    def __init__(self, mixers: Sequence[Mixer], longest: int):
        self._longest = longest
        scaled = [mixer for mixer in mixers if mixer.reads_query_scales]
        self._mixer = scaled[0] if scaled else None
        self._table = np.empty(0, dtype=np.float32)
        samples = {tuple(mixer.query_scale(at) for at in (0, longest // 2, longest - 1)) for mixer in scaled}
        if len(samples) > 1:
            raise UnsupportedLayerError("its layers scale queries by their positions in different ways")

    def update(self, call: StepCall, last: int) -> None:
        """Set the address of the table in a step's call, after growing it to position ``last``."""
        if self._mixer is None:
            return
        known = len(self._table)
        if last >= known:
            count = min(self._longest, max(last + 1, 2 * known, self.STEP))
            more = [self._mixer.query_scale(position) for position in range(known, count)]
            self._table = np.concatenate([self._table, np.array(more, dtype=np.float32)])
        call.query_scales = self._table.ctypes.data

    def has(self, position: int) -> bool:
        """Return whether the table has a position, if a mixer reads it."""
        return self._mixer is None or position < len(self._table)
