"""Runs recurrent and convolution modules in a ragged step: each sequence by itself, and decodes as one batch.

A step's tokens lie in one row, which suits modules that look at single tokens. Modules that keep a state are
found by their calls of the cache, and run batch by batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from server.kernels.upload import upload
from server.model.recurrent.rows import Rows, RowsOutput, join, zeros_like_output
from server.model.recurrent.states import (
    NO_ROWS,
    RecurrentBatch,
    RecurrentCache,
    StateCache,
    StateKey,
    StateShape,
    StateShapes,
    StepStates,
)
from server.model.step import SequenceChunk

HIDDEN = "hidden_states"  # the first argument of a mixer
BY_SEQUENCE = "rows", "sources", "targets"  # fields of a batch
ROUNDING = 1e-2  # tolerance relative to the range of an output, in bfloat16 too


@dataclass
class ModuleCall:
    """A call of a module, with its arguments and its output."""

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any = None


class StateProbe(RecurrentCache):
    """A cache for a first pass over one sequence; it records the calls of modules that ask it for states."""

    def __init__(self) -> None:
        super().__init__(self._record)
        self.calls: list[ModuleCall] = []
        self._running: list[ModuleCall] = []

    @property
    def shapes(self) -> StateShapes:
        return {key: StateShape(tuple(state.shape[1:]), state.dtype) for key, state in self.states.items()}

    @contextmanager
    def track_modules(self, model: nn.Module) -> Iterator[None]:
        """Keep track of the module that runs."""

        def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._running.append(ModuleCall(module, args, kwargs))

        def leave(_module: nn.Module, _inputs: Any, output: Any) -> None:
            self._running.pop().output = output

        handles = [module.register_forward_pre_hook(enter, with_kwargs=True) for module in model.modules()]
        handles += [module.register_forward_hook(leave) for module in model.modules()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _record(self, _: StateKey) -> None:
        running = self._running[-1]
        if all(running.module is not call.module for call in self.calls):
            self.calls.append(running)


def split_recurrent_modules(calls: Sequence[ModuleCall], num_tokens: int) -> None:
    """Make modules that keep a state run a step batch by batch.

    Some compute several tokens from an existing state otherwise than one by one (transformers' Mamba of Jamba begins
    anew unless it is given one token). After the beginning of a sequence these run token by token. One module of each
    class is tried.

    Args:
        calls: one of each module, with the tokens of one sequence.
        num_tokens: of that sequence, two or more.
    """
    can_resume: dict[type[nn.Module], bool] = {}
    for call in calls:
        kind, split = type(call.module), SplitForward(call.module.forward, call.output)
        if kind not in can_resume:
            can_resume[kind] = split.can_resume(call, num_tokens)
        split.resumes_by_token = not can_resume[kind]
        call.module.forward = split


class FusedStep(Protocol):
    """Runs a mixer's steps of single tokens."""

    @property
    def has_hooks(self) -> bool:
        """True if something is added to the module's projections, which only the module adds."""

    def run(self, hidden_states: torch.Tensor, states: StateCache, batch: RecurrentBatch) -> torch.Tensor:
        """Return the mixer's output ``(sequences, 1, hidden)``; write the states after it beside the current ones."""


class SplitForward:
    """The forward of a module, called on each batch of a step with a cache of its own.

    Args:
        sample: an output of the module.
    """

    def __init__(self, forward: Callable[..., Any], sample: Any):
        self._forward, self._sample = forward, sample
        self.resumes_by_token = False  # whether tokens after a state run one by one
        self.fused: FusedStep | None = None  # runs single tokens after a state

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        step = next((value for value in (*args, *kwargs.values()) if isinstance(value, StepStates)), None)
        if step is None:  # this module is inside another that was split
            return self._forward(*args, **kwargs)
        if step.returns_zeros:
            return zeros_like_output(self._sample, step.num_tokens)
        outputs = []
        for batch in step.batches:
            cache, fused = step.batch_cache(batch), self._fused_for(step, batch)
            if fused is not None and step.cache is not None:
                part = Rows(step.num_tokens, batch.rows, batch.size, cache)
                hidden = kwargs[HIDDEN] if HIDDEN in kwargs else args[0]
                outputs.append(RowsOutput(fused.run(part.select(hidden), step.cache, batch), part))
                continue
            by_token = step.token_by_token or (self.resumes_by_token and batch.has_state and batch.num_tokens > 1)
            for rows in torch.split(batch.rows, 1) if by_token else [batch.rows]:
                size = (1, 1) if by_token else batch.size
                step.rows_now = rows
                outputs.append(self._run(args, kwargs, Rows(step.num_tokens, rows, size, cache)))
            step.collect(batch, cache)
        step.rows_now = None
        return join(outputs, step.num_tokens)

    def can_resume(self, call: ModuleCall, num_tokens: int) -> bool:
        """Return whether a sequence in two pieces has the same output as in one."""
        all_rows, cache = torch.arange(num_tokens), RecurrentCache()
        pieces = [
            self._run(call.args, call.kwargs, Rows(num_tokens, rows, (1, len(rows)), cache))
            for rows in all_rows.chunk(2)
        ]
        full = RowsOutput(call.output, Rows(num_tokens, all_rows, (1, num_tokens), cache))
        return have_same_outputs(join([full], num_tokens), join(pieces, num_tokens))

    def _fused_for(self, step: StepStates, batch: RecurrentBatch) -> FusedStep | None:
        """Return what runs a batch instead of the module."""
        is_single = batch.has_state and batch.num_tokens == 1 and not step.token_by_token
        if self.fused is None or not is_single or step.cache is None or not step.cache.is_double:
            return None
        return None if self.fused.has_hooks else self.fused

    def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any], rows: Rows) -> RowsOutput:
        return RowsOutput(self._forward(*rows.select(args), **rows.select(kwargs)), rows)


def have_same_outputs(one: Any, other: Any) -> bool:
    """Return whether two outputs of a module are the same but for rounding."""
    pairs = zip(_tensors(one), _tensors(other), strict=True)
    return all(_is_close(first, second) for first, second in pairs)


def _tensors(output: Any) -> list[torch.Tensor]:
    return [tensor for tensor in (output if isinstance(output, tuple) else (output,)) if tensor is not None]


def _is_close(one: torch.Tensor, other: torch.Tensor) -> bool:
    one, other = one.float(), other.float()
    return float((one - other).abs().max()) <= ROUNDING * float(one.max() - one.min())


def recurrent_batches(
    chunks: Sequence[SequenceChunk], device: torch.device, states: StateCache | None, *, token_by_token: bool = False
) -> list[RecurrentBatch]:
    """Return the batches of a step: each piece of a prompt, and all decodes together unless ``token_by_token``."""
    batches, row = [], 0
    decodes: list[tuple[int, SequenceChunk]] = []
    for chunk in chunks:
        if chunk.num_tokens == 1 and chunk.num_cached and not token_by_token:
            decodes.append((row, chunk))
        else:
            batches.append(_batch(range(row, row + chunk.num_tokens), [chunk], device, states))
        row += chunk.num_tokens
    if decodes:
        batches.append(_batch([row for row, _ in decodes], [chunk for _, chunk in decodes], device, states))
    return batches


def _batch(
    rows: Sequence[int], chunks: Sequence[SequenceChunk], device: torch.device, states: StateCache | None
) -> RecurrentBatch:
    places = rows_of_chunks(chunks, states)
    numbers = upload(np.concatenate([np.asarray(rows, np.int64), *places]), device)
    of_tokens, sources, targets = torch.split(numbers, [len(rows), len(chunks), len(chunks)])
    return RecurrentBatch(
        rows=of_tokens,
        sources=sources,
        targets=targets,
        num_tokens=chunks[0].num_tokens,
        has_state=chunks[0].num_cached > 0,
    )


def join_batches(batches: Sequence[RecurrentBatch]) -> RecurrentBatch:
    """Return one batch of several with as many tokens of each sequence and states before them."""
    if len(batches) == 1:
        return batches[0]
    rows, sources, targets = (torch.cat([getattr(each, name) for each in batches]) for name in BY_SEQUENCE)
    return replace(batches[0], rows=rows, sources=sources, targets=targets)


def rows_of_chunks(chunks: Sequence[SequenceChunk], states: StateCache | None) -> npt.NDArray[np.int64]:
    """Return the rows with the states before some chunks and those for the states after them, ``(2, chunks)``."""
    rows = [NO_ROWS if states is None else states.rows_of(chunk) for chunk in chunks]
    return np.array(rows, np.int64).T
