"""Some rows of a step's tokens, the arguments of a module for them, and its outputs joined."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from server.model.recurrent.states import AttentionPassThrough, RecurrentCache


@dataclass(frozen=True)
class Rows:
    """Some rows of a step's tokens, to run a module on."""

    num_tokens: int  # all tokens of the step
    rows: torch.Tensor
    size: tuple[int, int]  # sequences, and tokens of each
    cache: RecurrentCache

    def select(self, value: Any) -> Any:
        """Return the rows' part of a module's arguments, with their cache in the place of the step's."""
        if isinstance(value, AttentionPassThrough):
            return self.cache
        if isinstance(value, torch.Tensor) and value.shape[:2] == (1, self.num_tokens):
            chosen = value[0]
            if len(self.rows) < self.num_tokens:
                chosen = chosen.index_select(0, self.rows.to(value.device))
            return chosen.reshape(*self.size, *value.shape[2:])
        if isinstance(value, tuple | list):
            return type(value)(self.select(item) for item in value)
        if isinstance(value, dict):
            return {name: self.select(item) for name, item in value.items()}
        return value


@dataclass(frozen=True)
class RowsOutput:
    """The output of a module for some rows."""

    output: Any
    rows: Rows


def join(pieces: Sequence[RowsOutput], num_tokens: int) -> Any:
    """Join the outputs for all rows, ``(1, tokens, ...)``; None for an output without a row for each token."""
    first = pieces[0].output
    if isinstance(first, tuple):
        return tuple(
            join([RowsOutput(piece.output[index], piece.rows) for piece in pieces], num_tokens)
            for index in range(len(first))
        )
    if not all(
        isinstance(piece.output, torch.Tensor) and piece.output.shape[:2] == piece.rows.size for piece in pieces
    ):
        return None
    if len(pieces[0].rows.rows) == num_tokens:
        joined = first.flatten(0, 1)
        return joined.unsqueeze(0)
    joined = first.new_empty((num_tokens, *first.shape[2:]))
    for piece in pieces:
        joined[piece.rows.rows] = piece.output.flatten(0, 1)
    return joined.unsqueeze(0)


def zeros_like_output(sample: Any, num_tokens: int) -> Any:
    """Return zeros in the shape of a module's output for so many tokens, given a sample of its output."""
    if isinstance(sample, tuple):
        return tuple(zeros_like_output(item, num_tokens) for item in sample)
    return sample.new_zeros((1, num_tokens, *sample.shape[2:])) if isinstance(sample, torch.Tensor) else None
