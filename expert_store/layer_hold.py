"""LayerHold: the experts of a layer that are on the device, for compute that starts before it knows which it needs."""

from __future__ import annotations

from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt
import torch

from expert_store.store_state import StoreState


class LayerHold:
    """A context manager that keeps the resident experts of one layer in their slots, until a lease takes its place.

    A lease that is made with it (``ExpertStore.lease``) ends it at a moment when the experts that were found are leased
    already, so none of them leaves its slot in between. Slots of others may be overwritten from then on: compute that
    was queued under the hold must not read them.

    Args:
        slots: of each expert in ``arena``, int32; -1 for one that is not there yet.
    """

    def __init__(self, state: StoreState, layer: int, slots: npt.NDArray[np.int32]):
        self._state, self._pool = state, state.pool_of[layer]
        self.slots = slots
        self._is_open = True
        self._pool.top.hold(frozenset(state.keys[layer]))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._is_open:
            with self._state.lock:
                self._is_open = False
                self._pool.end_hold()
                self._state.lock.wake_waiters()

    @property
    def arena(self) -> torch.Tensor:
        """All slots of the layer's experts, uint8 ``(slots, slot_bytes)``, on the device."""
        return self._pool.arena

    def give_way(self) -> None:
        """End the hold, as the experts that compute reads are leased now; the lock is held."""
        if self._is_open:
            self._is_open = False
            self._pool.end_hold(is_used=False)
            self._state.lock.wake_waiters()
