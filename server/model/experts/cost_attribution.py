"""Attributes the experts of a step, and their cost, to the chunks whose tokens used them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from server.model.experts.step_record import LayerRun, ResidentRuns, runs_of
from server.model.step import ExpertCost, RoutedExperts, SequenceChunk

IntArray = npt.NDArray[np.int64]


@dataclass(slots=True)
class RowOwners:
    """The chunk that each row of a layer of experts belongs to.

    Args:
        chunks: of the step.
        are_images: bool ``(tokens,)``, for a model with separate layers of experts for images and text.
        text_layers: layers that tokens of text go to.
    """

    chunks: Sequence[SequenceChunk]
    are_images: npt.NDArray[np.bool_] | None = None
    text_layers: Collection[int] = ()

    def owners(self, layer: int) -> IntArray:
        """Return the index of the chunk of each of a layer's rows."""
        owners = np.repeat(np.arange(len(self.chunks)), [chunk.num_tokens for chunk in self.chunks])
        return owners if self.are_images is None else owners[self.tokens(layer)]

    def tokens(self, layer: int) -> IntArray:
        """Return the token of each of a layer's rows."""
        if self.are_images is None:
            return np.arange(sum(chunk.num_tokens for chunk in self.chunks))
        return np.flatnonzero(self.are_images != (layer in self.text_layers))

    @property
    def is_decode(self) -> bool:
        """True if each row is the only token of its chunk."""
        return self.are_images is None and sum(len(chunk.token_ids) for chunk in self.chunks) == len(self.chunks)

    def last_row(self, layer: int, chunk: int) -> int | None:
        """Return a layer's row for the last token of a chunk; None if that token goes to other layers."""
        token = sum(each.num_tokens for each in self.chunks[: chunk + 1]) - 1
        if self.are_images is None:
            return token
        is_here = self.are_images != (layer in self.text_layers)
        return int(is_here[:token].sum()) if is_here[token] else None


class Owners(Protocol):
    """The chunks of a step, and which of them a row of a layer belongs to."""

    @property
    def chunks(self) -> Sequence[SequenceChunk]:
        """The chunks of the step."""

    @property
    def is_decode(self) -> bool:
        """True if each row is the only token of its chunk."""

    def owners(self, layer: int) -> IntArray:
        """Return the index of the chunk of each of a layer's rows."""


def attribute_costs(parts: Sequence[LayerRun | ResidentRuns], rows: Owners) -> list[ExpertCost]:
    """Return the cost of each chunk's tokens.

    A chunk is charged a lookup for each expert of a layer that its own tokens went to. A missed expert and its bytes,
    and the bytes of one that was read ahead of the layer, are charged to one of the chunks that used it, so that sums
    over chunks equal what was read for the step. Each chunk of a layer is charged the layer's stall in full, as all of
    them wait.
    """
    costs = [ExpertCost() for _ in rows.chunks]
    is_decode = len(costs) > 1 and rows.is_decode
    num_each, seconds_each = 0, 0.0  # equal for all chunks
    for part in parts:
        if isinstance(part, ResidentRuns):
            if len(costs) == 1:
                costs[0].add(ExpertCost(part.num_lookups, bytes_read=part.bytes_read))
            elif is_decode and not part.read_ahead and part.num_run == part.num_choices * len(costs):
                # A token's choices are distinct.
                num_each += part.num_choices
            else:
                for run in part.runs:
                    _attribute_layer(run, rows.owners(run.layer), costs)
        elif len(costs) == 1:
            costs[0].add(part.cost)
        elif is_decode and not part.missed and not part.read_ahead and part.chosen.max() < part.num_experts:
            num_each += part.chosen.shape[1]
            seconds_each += part.cost.stall_seconds
        else:
            _attribute_layer(part, rows.owners(part.layer), costs)
    for cost in costs:
        cost.num_lookups += num_each
        cost.stall_seconds += seconds_each
    return costs


def _attribute_layer(run: LayerRun, owners: IntArray, costs: Sequence[ExpertCost]) -> None:
    uses = np.zeros((len(costs), run.num_experts + 1), dtype=bool)  # the last column stands for "no expert"
    uses[owners[:, None], np.minimum(run.chosen, run.num_experts)] = True
    num_lookups = uses[:, :-1].sum(1).tolist()
    for owner in np.unique(owners).tolist():
        costs[owner].add(ExpertCost(num_lookups[owner], stall_seconds=run.cost.stall_seconds))
    for place, nbytes in run.read_ahead.items():
        _payer(run, place, uses, costs).bytes_read += nbytes
    for place, nbytes in run.missed.items():
        payer = _payer(run, place, uses, costs)
        payer.num_misses += 1
        payer.bytes_read += nbytes
        payer.remote_bytes += nbytes if place in run.remote else 0


def _payer(run: LayerRun, place: int, uses: npt.NDArray[np.bool_], costs: Sequence[ExpertCost]) -> ExpertCost:
    """Return the cost that pays for a read: chunks that used the expert pay by turns, so that none pays for all."""
    users = np.flatnonzero(uses[:, place]).tolist()
    return costs[users[(run.layer + place) % len(users)]]


def last_choices_of_chunks(
    parts: Sequence[LayerRun | ResidentRuns], rows: RowOwners, layers: Sequence[int]
) -> list[RoutedExperts | None]:
    """Return the experts of each chunk's last token, by layer; None for a chunk that does not want them."""
    if not [chunk for chunk in rows.chunks if chunk.wants_experts]:  # as in most steps
        return [None] * len(rows.chunks)
    latest = {run.layer: run for run in runs_of(parts)}
    return [
        _stack([_choices(latest[layer], rows.last_row(layer, index)) for layer in layers if layer in latest])
        if chunk.wants_experts
        else None
        for index, chunk in enumerate(rows.chunks)
    ]


def last_choices(runs: Sequence[LayerRun], layers: Sequence[int]) -> RoutedExperts:
    """Return the experts of the last token of a step with one sequence, by layer."""
    latest = {run.layer: run for run in runs}
    return _stack([_choices(latest[layer], -1) for layer in layers if layer in latest])


def _choices(run: LayerRun, row: int | None) -> IntArray:
    chosen = run.chosen[0:0].ravel() if row is None else run.chosen[row]
    chosen = chosen[chosen < run.num_experts]
    return chosen if run.numbers is None else run.numbers[chosen]


def _stack(layers: Sequence[IntArray]) -> RoutedExperts:
    stacked = np.full((len(layers), max(map(len, layers), default=0)), -1, dtype=np.int16)
    for row, chosen in zip(stacked, layers, strict=True):
        row[: len(chosen)] = chosen
    return stacked
