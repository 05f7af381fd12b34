"""ResidentExperts: all experts of a model for one step, where all of them are in memory."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from expert_store import Phase, StepLease
from server.model.experts.expert_layer import ExpertLayer
from server.model.experts.step_record import StepRecord

IntArray = npt.NDArray[np.int64]


class ResidentExperts:
    """A context manager that holds all experts for a step under one lease (``ExpertStore.hold_residents``)."""

    def __init__(self, lease: StepLease, phase: Phase, record: StepRecord):
        self._lease, self._phase, self._record = lease, phase, record

    def __enter__(self) -> Self:
        self._lease.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._lease.__exit__(kind, error, traceback)

    def slots(self, layers: Sequence[int]) -> npt.NDArray[np.uint64]:
        """Return the address of each expert's slot, ``(layers, experts)``; 0 where a layer has fewer experts."""
        lease = self._lease
        if lease.layers == layers:
            return lease.addresses
        return lease.addresses[[lease.layers.index(number) for number in layers]]

    def finish(self, layers: Sequence[ExpertLayer], chosen: Sequence[IntArray], rows: IntArray) -> None:
        """End the lease of a step that succeeded, and record what the step used.

        Args:
            layers: in the order in which they ran.
            chosen: of each layer, ``(tokens, k)``, each an expert.
            rows: tokens that each expert ran on, ``(layers, experts)``; 0 where a layer has fewer experts.
        """
        self._record.add_residents(layers, chosen, rows)
        counts = {layer.number: row[: len(layer.keys)] for layer, row in zip(layers, rows, strict=True)}
        self._lease.close(counts, self._phase)
