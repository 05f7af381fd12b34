"""Whose tokens went to which experts of a step, and what of its cost is whose."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .step import Chosen, ExpertCost, SequenceChunk

IntArray = npt.NDArray[np.int64]


class LayerRun(NamedTuple):
    """One layer's experts in a step."""

    layer: int
    chosen: IntArray  # (rows, k); choices from ``num_experts`` on are no expert
    num_experts: int
    cost: ExpertCost
    missed: Mapping[int, int]  # experts that were in no tier, and the bytes read for each


@dataclass(frozen=True)
class Rows:
    """The tokens of a step as its layers of experts get them.

    Args:
        chunks: of the step.
        are_images: bool ``(tokens,)``, where a model has layers of experts for images and others for text.
        text_layers: those that tokens of text go to.
    """

    chunks: Sequence[SequenceChunk]
    are_images: npt.NDArray[np.bool_] | None = None
    text_layers: Collection[int] = ()

    def owners(self, layer: int) -> IntArray:
        """The chunk of each of a layer's rows."""
        owners = np.repeat(np.arange(len(self.chunks)), [chunk.num_tokens for chunk in self.chunks])
        return owners if self.are_images is None else owners[self.are_images != (layer in self.text_layers)]

    def last(self, layer: int, chunk: int) -> int | None:
        """Which of a layer's rows is a chunk's last token; None if it goes elsewhere."""
        token = sum(each.num_tokens for each in self.chunks[: chunk + 1]) - 1
        if self.are_images is None:
            return token
        is_here = self.are_images != (layer in self.text_layers)
        return int(is_here[:token].sum()) if is_here[token] else None


def costs_of(runs: Sequence[LayerRun], rows: Rows) -> list[ExpertCost]:
    """What each chunk's tokens cost.

    Look-ups, misses and bytes are those of the experts that its own tokens went to, each once a layer: what two chunks
    share counts for both. Whoever takes part in a layer waits for all of its experts.
    """
    costs = [ExpertCost() for _ in rows.chunks]
    is_decode = rows.are_images is None and all(chunk.num_tokens == 1 for chunk in rows.chunks)
    num_each, seconds_each = 0, 0.0  # what all have in common
    for run in runs:
        if len(costs) == 1:
            costs[0].add(run.cost)
        elif is_decode and not run.missed and run.chosen.max() < run.num_experts:  # a token's choices are distinct
            num_each += run.chosen.shape[1]
            seconds_each += run.cost.stall_seconds
        else:
            _share(run, rows.owners(run.layer), costs)
    for cost in costs:
        cost.num_lookups += num_each
        cost.stall_seconds += seconds_each
    return costs


def _share(run: LayerRun, owners: IntArray, costs: Sequence[ExpertCost]) -> None:
    uses = np.zeros((len(costs), run.num_experts + 1), dtype=bool)  # the last column is no expert
    uses[owners[:, None], np.minimum(run.chosen, run.num_experts)] = True
    missed = uses[:, list(run.missed)]  # (chunks, missed)
    num_lookups = uses[:, :-1].sum(1).tolist()
    num_bytes = (missed @ np.fromiter(run.missed.values(), np.int64, len(run.missed))).tolist()
    for owner in np.unique(owners).tolist():
        cost = ExpertCost(num_lookups[owner], int(missed[owner].sum()), run.cost.stall_seconds, num_bytes[owner])
        costs[owner].add(cost)


def chosen_by(runs: Sequence[LayerRun], rows: Rows, layers: Sequence[int]) -> list[Chosen | None]:
    """The experts that the last token of each chunk went to, by layer; None for a chunk that does not want them."""
    if not any(chunk.wants_experts for chunk in rows.chunks):
        return [None] * len(rows.chunks)
    latest = {run.layer: run for run in runs}
    return [
        _stack([_choices(latest[layer], rows.last(layer, place)) for layer in layers if layer in latest])
        if chunk.wants_experts
        else None
        for place, chunk in enumerate(rows.chunks)
    ]


def last_choices(runs: Sequence[LayerRun], layers: Sequence[int]) -> Chosen:
    """The experts that the last token of one sequence went to, by layer."""
    latest = {run.layer: run for run in runs}
    return _stack([_choices(latest[layer], -1) for layer in layers if layer in latest])


def _choices(run: LayerRun, row: int | None) -> IntArray:
    chosen = run.chosen[0:0].ravel() if row is None else run.chosen[row]
    return chosen[chosen < run.num_experts]


def _stack(layers: Sequence[IntArray]) -> Chosen:
    stacked = np.full((len(layers), max(map(len, layers), default=0)), -1, dtype=np.int16)
    for row, chosen in zip(stacked, layers, strict=True):
        row[: len(chosen)] = chosen
    return stacked
