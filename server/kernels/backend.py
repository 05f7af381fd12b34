"""The seam between a layer of experts and what computes it.

A layer's rows are sorted by expert, their experts are leased, and an ``ExpertBackend`` runs them as they become ready.
It knows neither store nor model: what it needs of both is written down here.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from .expert import ExpertsModule


class Parameter(Protocol):
    """One tensor of an expert."""

    @property
    def name(self) -> str: ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def shape(self) -> tuple[int, ...]: ...


class Layout(Protocol):
    """The places of an expert's tensors in its slot, the same for all experts of a layer."""

    @property
    def parameters(self) -> Sequence[Parameter]: ...

    @property
    def offsets(self) -> Mapping[str, int]:
        """Bytes from the beginning of the slot, by parameter."""

    @property
    def slot_bytes(self) -> int: ...


class ReadyExperts(Protocol):
    """Some of a layer's experts whose weights are there.

    They may be used until the next batch is asked for, and while ``gives_back`` is False until the end of the layer.
    """

    @property
    def keys(self) -> Sequence[Hashable]: ...

    def weights(self, index: int) -> Mapping[str, torch.Tensor]:
        """The tensors of ``keys[index]``."""

    @property
    def addresses(self) -> npt.NDArray[np.uint64]:
        """The address of each expert's slot, ``(keys,)``."""

    @property
    def gives_back(self) -> bool:
        """True while asking for the next batch may take these weights away; once False, it stays so."""


@dataclass(frozen=True)
class SortedRows:
    """The rows of a layer, sorted by the experts that they go to.

    Args:
        hidden_states: ``(tokens, hidden)``.
        weights: of the router, ``(tokens, k)``.
        order: int64 ``(tokens * k,)``: choices ``token * k + place``, expert after expert, in their order within each;
            those of no expert come last.
        spans: by expert, where its choices begin and end in ``order``; experts without any are left out.
    """

    hidden_states: torch.Tensor
    weights: torch.Tensor
    order: npt.NDArray[np.int64]
    spans: Mapping[Any, tuple[int, int]]

    @property
    def num_tokens(self) -> int:
        return self.weights.shape[0]

    @property
    def top_k(self) -> int:
        return self.weights.shape[1]

    @property
    def num_run(self) -> int:
        """Choices that go to an expert; what follows them in ``order`` adds nothing."""
        return sum(end - start for start, end in self.spans.values())


class ExpertBackend(Protocol):
    """Computes layers of experts. One layer at a time."""

    def run(
        self,
        module: ExpertsModule,
        layout: Layout,
        rows: SortedRows,
        batches: Iterable[ReadyExperts],
        between: Callable[[], None],
    ) -> torch.Tensor:
        """Each token through its experts, weighted and summed: ``(tokens, hidden)`` in the dtype of the hidden states.

        Each batch is computed as it comes; after the last one every expert of ``rows.spans`` has come once. Results are
        summed in top-k order, so that the order in which experts became ready changes no bit.

        Args:
            module: tells how an expert's tensors make its output.
            layout: of the slots of this layer.
            batches: the experts, as they become ready; asking for the next one may wait for it, and may raise.
            between: is to be called between experts or batches, on the thread that called ``run``: it sees to what else
                waits for a moment's attention, and takes microseconds.
        """
