"""Interface of the backends that compute a layer of experts.

A layer's rows are sorted by expert, their experts are leased, and its ``ExpertBackend`` runs them as they become ready.
A backend depends on neither store nor model: the protocols here describe what it needs of both.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch

from server.kernels.low_rank import ExpertAdditions


class Parameter(Protocol):
    """One tensor of an expert."""

    @property
    def name(self) -> str: ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def shape(self) -> tuple[int, ...]: ...


class Layout(Protocol):
    """The offsets of an expert's tensors in its slot, the same for all experts of a layer."""

    @property
    def parameters(self) -> Sequence[Parameter]: ...

    @property
    def offsets(self) -> Mapping[str, int]:
        """Offset in bytes from the start of the slot, by parameter."""

    @property
    def slot_bytes(self) -> int: ...


class ReadyExperts(Protocol):
    """A batch of a layer's experts whose weights are loaded.

    They may be used until the next batch is requested, or until the end of the layer while ``gives_back`` is False.
    """

    @property
    def keys(self) -> Sequence[Hashable]: ...

    def weights(self, index: int) -> Mapping[str, torch.Tensor]:
        """The tensors of ``keys[index]``."""

    @property
    def addresses(self) -> array[int]:
        """The address of each expert's slot, ``(keys,)``."""

    @property
    def slots(self) -> npt.NDArray[np.int64]:
        """The slot of each expert in ``arena``, ``(keys,)``."""

    @property
    def arena(self) -> torch.Tensor:
        """All slots, uint8 ``(slots, slot_bytes)``, in the memory that compute reads."""

    @property
    def gives_back(self) -> bool:
        """True while requesting the next batch may evict these weights; once False, it stays False."""


@dataclass(frozen=True)
class SortedRows:
    """The rows of a layer, sorted by the experts that they are routed to.

    Args:
        hidden_states: ``(tokens, hidden)``.
        weights: the router's weights, ``(tokens, k)``.
        order: int64 ``(tokens * k,)``: choices ``token * k + place``, grouped by expert and ascending within each;
            choices of no expert come last.
        spans: start and end of each expert's choices in ``order``; experts without any are left out.
        additions: what adapters add.
    """

    hidden_states: torch.Tensor
    weights: torch.Tensor
    order: npt.NDArray[np.int64]
    spans: Mapping[Any, tuple[int, int]]
    additions: ExpertAdditions | None = None

    @property
    def num_tokens(self) -> int:
        return self.weights.shape[0]

    @property
    def top_k(self) -> int:
        return self.weights.shape[1]

    @property
    def num_run(self) -> int:
        """The number of choices that go to an expert; those after them in ``order`` add nothing."""
        return sum(end - start for start, end in self.spans.values())


class Rooms:
    """Memory on a device that runs of layers use one after the other, so that graphs of many layers need it once."""

    def __init__(self) -> None:
        self._rooms: dict[tuple[str, torch.dtype], torch.Tensor] = {}

    def take(self, name: str, like: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Return a tensor on the device of another; the next one of this name and dtype lies at the same place."""
        count, room = math.prod(shape), self._rooms.get((name, dtype))
        if room is None or room.numel() < count:
            room = self._rooms[name, dtype] = like.new_empty(count, dtype=dtype)
        return room[:count].view(shape)


class PartialRun(Protocol):
    """A run of a layer whose experts come in parts, in any order."""

    def run_slots(self, slots: torch.Tensor, arena: torch.Tensor) -> None:
        """Run the choices of those experts that have a slot; each expert that is chosen has one in one call.

        Args:
            slots: of each expert in ``arena``, int32 ``(experts,)``; -1 for those that are not to be run now.
            arena: uint8 ``(slots, slot_bytes)``.
        """

    def put(self, choices: torch.Tensor, products: torch.Tensor) -> None:
        """Take the results of choices whose experts were computed elsewhere.

        Args:
            choices: ``token * k + place`` of each, int64.
            products: float32 ``(choices, hidden)``, not weighted.
        """

    def finish(self) -> torch.Tensor:
        """Return the weighted sums, ``(tokens, hidden)``."""


@runtime_checkable
class TableBackend(Protocol):
    """An ``ExpertBackend`` of a device that also runs layers by a table of slots.

    The host reads nothing of the device for it.
    """

    def begin(
        self,
        hidden_states: torch.Tensor,
        chosen: torch.Tensor,
        weights: torch.Tensor,
        num_experts: int,
        *,
        rooms: Rooms | None = None,
    ) -> PartialRun:
        """Begin a run that has the same bits as ``run``.

        Args:
            hidden_states, chosen, weights: see ``run_by_table``.
            rooms: for what is kept until the end of the run; memory of its own by default.
        """

    def run_by_table(
        self,
        hidden_states: torch.Tensor,
        chosen: torch.Tensor,
        weights: torch.Tensor,
        slots: torch.Tensor,
        arena: torch.Tensor,
    ) -> torch.Tensor:
        """Return the same bits as ``run``.

        Args:
            hidden_states: ``(tokens, hidden)``.
            chosen: ``(tokens, k)``; numbers beyond the last expert add nothing.
            weights: of the router, ``(tokens, k)``.
            slots: of each expert in ``arena``, int32 ``(experts,)``.
            arena: uint8 ``(slots, slot_bytes)``.
        """


class ExpertBackend(Protocol):
    """Computes a layer of experts; one call runs at a time, of all backends of a pool."""

    def run(self, rows: SortedRows, batches: Iterable[ReadyExperts], between: Callable[[], None]) -> torch.Tensor:
        """Run each token through its experts, and sum the weighted results.

        The result is ``(tokens, hidden)`` in the dtype of the hidden states. Each batch is computed as it comes; the
        batches together have every expert of ``rows.spans`` once. Results are summed in top-k order, so the order in
        which experts become ready changes no bit.

        Args:
            batches: the experts, as they become ready; iterating may block, and may raise.
            between: the backend calls it between experts or batches, on the thread that called ``run``. It does other
                pending work and takes microseconds.
        """

    def run_unweighted(
        self, rows: SortedRows, batches: Iterable[ReadyExperts], between: Callable[[], None], *, is_exact: bool
    ) -> int:
        """Run each choice's expert on its row, for a caller that weights and adds the results.

        Args:
            rows: float32, in the CPU's memory; each choice is one of an expert.
            is_exact: never round rows before a product.

        Returns:
            The address of the results, float32 ``(tokens * k, hidden)`` by choice, valid until the next call.
        """
