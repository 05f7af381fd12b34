"""Recurrent and convolution modules in a ragged step: each sequence by itself, and decodes as one batch.

A step's tokens lie one after the other, which suits whatever looks at single tokens. Modules that keep a state are
found by their asking the cache for it, whatever they are called, and are run part by part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .states import AttentionPassage, CellCache, Part, StateKey, StateShape, StateShapes, StepStates
from .step import SequenceChunk

ROUNDING = 1e-2  # of the range of an output, in bfloat16 too


@dataclass
class Call:
    """What a module was given, and what it gave."""

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any = None


class Discovery(CellCache):
    """A cache for a first pass, of one sequence from its beginning, that notes who asks it for states."""

    def __init__(self) -> None:
        super().__init__(self._note)
        self.cells: list[Call] = []
        self._running: list[Call] = []

    @property
    def shapes(self) -> StateShapes:
        return {key: StateShape(tuple(state.shape[1:]), state.dtype) for key, state in self.states.items()}

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Know which module runs."""

        def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._running.append(Call(module, args, kwargs))

        def leave(_module: nn.Module, _inputs: Any, output: Any) -> None:
            self._running.pop().output = output

        handles = [module.register_forward_pre_hook(enter, with_kwargs=True) for module in model.modules()]
        handles += [module.register_forward_hook(leave) for module in model.modules()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _note(self, _: StateKey) -> None:
        call = self._running[-1]
        if all(call.module is not cell.module for cell in self.cells):
            self.cells.append(call)


def split_cells(cells: Sequence[Call], num_tokens: int) -> None:
    """Let modules that keep a state run a step part by part.

    Some give another result where several tokens go on from a state (transformers' Mamba of Jamba begins anew unless
    it is one token). These take what follows the beginning of a sequence token by token. One of each class is tried.

    Args:
        cells: what was called with the tokens of one sequence.
        num_tokens: of that sequence, two or more.
    """
    can_go_on: dict[type[nn.Module], bool] = {}
    for cell in cells:
        kind, split = type(cell.module), _Split(cell.module.forward, cell.output)
        if kind not in can_go_on:
            can_go_on[kind] = split.can_go_on(cell, num_tokens)
        split.steps_singly = not can_go_on[kind]
        cell.module.forward = split


class _Split:
    """The forward of a module, on each part of a step with a cache of its own.

    Args:
        sample: what it gave for some tokens.
    """

    def __init__(self, forward: Callable[..., Any], sample: Any):
        self._forward, self._sample = forward, sample
        self.steps_singly = False  # where a state is there already

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        step = next((value for value in (*args, *kwargs.values()) if isinstance(value, StepStates)), None)
        if step is None:  # a module within one that was split
            return self._forward(*args, **kwargs)
        if step.is_hollow:
            return _zeros(self._sample, step.num_tokens)
        outputs = []
        for part in step.parts:
            cell = step.open(part)
            is_single = step.one_by_one or (self.steps_singly and part.has_past and part.num_tokens > 1)
            for rows in torch.split(part.rows, 1) if is_single else [part.rows]:
                size = (1, 1) if is_single else part.size
                outputs.append(self._run(args, kwargs, _Cut(step.num_tokens, rows, size, cell)))
            step.stage(part, cell)
        return _join(outputs, step.num_tokens)

    def can_go_on(self, call: Call, num_tokens: int) -> bool:
        """Whether a sequence in two pieces gives what it gives in one."""
        rows, cell = torch.arange(num_tokens), CellCache()
        pieces = [
            self._run(call.args, call.kwargs, _Cut(num_tokens, piece, (1, len(piece)), cell)) for piece in rows.chunk(2)
        ]
        whole = _Piece(call.output, _Cut(num_tokens, rows, (1, num_tokens), cell))
        pairs = zip(_tensors(_join([whole], num_tokens)), _tensors(_join(pieces, num_tokens)), strict=True)
        return all(_is_close(one, other) for one, other in pairs)

    def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any], cut: _Cut) -> _Piece:
        return _Piece(self._forward(*cut.of(args), **cut.of(kwargs)), cut)


@dataclass(frozen=True)
class _Cut:
    """Some rows of a step's tokens."""

    num_tokens: int  # of the step
    rows: torch.Tensor
    size: tuple[int, int]  # sequences and tokens of each
    cell: CellCache

    def of(self, value: Any) -> Any:
        """Their share of what a module is given, with their cache in the place of the step's."""
        if isinstance(value, AttentionPassage):
            return self.cell
        if isinstance(value, torch.Tensor) and value.shape[:2] == (1, self.num_tokens):
            return value[0].index_select(0, self.rows.to(value.device)).view(*self.size, *value.shape[2:])
        if isinstance(value, tuple | list):
            return type(value)(self.of(item) for item in value)
        if isinstance(value, dict):
            return {name: self.of(item) for name, item in value.items()}
        return value


@dataclass(frozen=True)
class _Piece:
    """What a module gave for some rows."""

    output: Any
    cut: _Cut


def _join(pieces: Sequence[_Piece], num_tokens: int) -> Any:
    """What a module gave for all rows, ``(1, tokens, ...)``; None for what it does not give token by token."""
    first = pieces[0].output
    if isinstance(first, tuple):
        return tuple(
            _join([_Piece(piece.output[index], piece.cut) for piece in pieces], num_tokens)
            for index in range(len(first))
        )
    if not all(isinstance(piece.output, torch.Tensor) and piece.output.shape[:2] == piece.cut.size for piece in pieces):
        return None
    joined = first.new_empty((num_tokens, *first.shape[2:]))
    for piece in pieces:
        joined[piece.cut.rows] = piece.output.flatten(0, 1)
    return joined.unsqueeze(0)


def _zeros(sample: Any, num_tokens: int) -> Any:
    """What a module may give for so many tokens, by what it gave for others."""
    if isinstance(sample, tuple):
        return tuple(_zeros(item, num_tokens) for item in sample)
    return sample.new_zeros((1, num_tokens, *sample.shape[2:])) if isinstance(sample, torch.Tensor) else None


def _tensors(output: Any) -> list[torch.Tensor]:
    return [tensor for tensor in (output if isinstance(output, tuple) else (output,)) if tensor is not None]


def _is_close(one: torch.Tensor, other: torch.Tensor) -> bool:
    one, other = one.float(), other.float()
    return float((one - other).abs().max()) <= ROUNDING * float(one.max() - one.min())


def parts_of(chunks: Sequence[SequenceChunk], device: torch.device, one_by_one: bool = False) -> list[Part]:
    """The parts of a step: each piece of a prompt, and all decodes together, or one by one too."""
    parts, row = [], 0
    decodes: list[tuple[int, SequenceChunk]] = []
    for chunk in chunks:
        if chunk.num_tokens == 1 and chunk.num_cached and not one_by_one:
            decodes.append((row, chunk))
        else:
            parts.append(_part(range(row, row + chunk.num_tokens), [chunk], device))
        row += chunk.num_tokens
    if decodes:
        parts.append(_part([row for row, _ in decodes], [chunk for _, chunk in decodes], device))
    return parts


def _part(rows: Sequence[int], chunks: Sequence[SequenceChunk], device: torch.device) -> Part:
    sources = [chunk.slot if chunk.resumes is None else chunk.resumes for chunk in chunks]
    return Part(
        rows=torch.tensor(rows, device=device),
        slots=torch.tensor([chunk.slot for chunk in chunks], device=device),
        sources=torch.tensor(sources, device=device),
        num_tokens=chunks[0].num_tokens,
        has_past=chunks[0].num_cached > 0,
    )
