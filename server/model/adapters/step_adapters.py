"""StepAdapters: the adapters of a step, and the rows that each of them adds to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch

from server.kernels.low_rank import ExpertAdditions, Factors
from server.model.adapters.chosen_adapters import StepChoices
from server.model.adapters.tables import tables_of
from server.model.chunk_weights import ChosenAdapters
from server.model.experts.expert_layer import ExpertLayer
from server.model.lora_adapter import LoraAdapter
from server.model.step import SequenceChunk

RowsOfLayer = Callable[[int], npt.NDArray[np.int64]]


class StepAdapters:
    """The adapters that the sequences of a step use, and their factors.

    Adapters are sorted by name. So the sums of a sequence with several of them do not depend on other sequences.

    Args:
        adapters: without repetition.
        factors: the fixed ones of the tokens, ``(tokens, adapters)``.
        choices: gives others at each linear layer; None if no sequence has a chooser.
    """

    def __init__(self, adapters: Sequence[LoraAdapter], factors: Factors, choices: StepChoices | None = None):
        self.adapters, self.factors, self.choices = adapters, factors, choices
        self.rows_of_layer: RowsOfLayer | None = None  # tokens of a layer's rows, if some go to other layers

    @classmethod
    def of(cls, chunks: Sequence[SequenceChunk]) -> Self | None:
        """Return the adapters of a step; None if no sequence uses one."""
        used = [() if chunk.weights is None else chunk.weights.adapters for chunk in chunks]
        choosers = [None if chunk.weights is None else chunk.weights.chooser for chunk in chunks]
        if not any(used) and not any(choosers):
            return None
        found = dict.fromkeys(each.adapter for weighted in used for each in weighted)
        found |= dict.fromkeys(adapter for chooser in choosers if chooser for adapter in chooser.adapters)
        adapters = sorted(found, key=lambda adapter: adapter.name)
        places = {adapter: place for place, adapter in enumerate(adapters)}
        factors = np.zeros((len(chunks), len(adapters)), dtype=np.float32)
        for row, weighted in zip(factors, used, strict=True):
            for each in weighted:
                row[places[each.adapter]] += each.weight
        counts = [chunk.num_tokens for chunk in chunks]
        return cls(adapters, factors.repeat(counts, axis=0), StepChoices.of(choosers, counts, adapters))

    def for_experts(self, layer: ExpertLayer, num_rows: int) -> ExpertAdditions | None:
        """Return what the adapters add to the experts of a layer; None if that is nothing.

        Args:
            num_rows: rows of the layer.
        """
        parts = [tables_of(adapter).parts(layer.number) for adapter in self.adapters]
        if not any(parts):
            return None
        count = len(layer.keys)

        def number_of(key: Any) -> int:
            return min(int(key.expert), count)

        return ExpertAdditions(
            self.factors_of_layer(layer.number, num_rows),
            number_of,
            parts,
            lambda: [tables_of(adapter).experts(layer.number, count) for adapter in self.adapters],
        )

    def factors_of_layer(self, layer: int, num_rows: int) -> Factors:
        """Return the factors of the rows of a layer of experts."""
        factors = self.factors if self.rows_of_layer is None else self.factors[self.rows_of_layer(layer)]
        return _checked(factors, num_rows)

    def rows_of_router(self, layer: int) -> npt.NDArray[np.int64] | None:
        """Return the token of each row that the router of a layer of experts sees; None if the rows are all tokens."""
        return None if self.rows_of_layer is None else self.rows_of_layer(layer)

    def factors_of_linear(self, name: str, rows: npt.NDArray[np.int64] | None, x: torch.Tensor) -> Factors:
        """Return the factors of the rows of a linear layer.

        Args:
            name: of the layer.
            rows: the token of each row; None if the rows are all tokens.
            x: the layer's input, ``(rows, inputs)``.
        """
        factors = _checked(self.factors if rows is None else self.factors[rows], len(x))
        if self.choices is None:
            return factors
        return self.choices.add_factors(name, x, np.arange(len(x)) if rows is None else rows, factors)


class SequenceAdapters(StepAdapters):
    """The adapters of a step of one sequence, whose layers may see any number of rows."""

    def routed(self, chunk: SequenceChunk) -> ChosenAdapters | None:
        """Return the adapters' shares in the tokens of the step; None without a chooser.

        The rows of layers belong to no tokens, so each token has the mean of all rows.
        """
        found = None if self.choices is None else self.choices.chosen([chunk])[0]
        return None if found is None else found.spread(chunk.num_tokens)

    def rows_of_router(self, layer: int) -> None:
        """Return None: rows belong to no tokens."""
        del layer

    def factors_of_layer(self, layer: int, num_rows: int) -> Factors:
        del layer
        return self.factors[:1].repeat(num_rows, axis=0)

    def factors_of_linear(self, name: str, rows: npt.NDArray[np.int64] | None, x: torch.Tensor) -> Factors:
        del rows
        factors = self.factors[:1].repeat(len(x), axis=0)
        if self.choices is None:
            return factors
        return self.choices.add_factors(name, x, np.zeros(len(x), dtype=np.int64), factors)


def _checked(factors: Factors, num_rows: int) -> Factors:
    if len(factors) != num_rows:
        raise RuntimeError(f"a layer with an adapter has {num_rows} rows, and not the {len(factors)} of its tokens")
    return factors
