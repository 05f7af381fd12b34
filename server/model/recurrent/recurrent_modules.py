"""Runs recurrent and convolution modules in a ragged step: each sequence by itself, and decodes as one batch.

A step's tokens lie in one row, which suits modules that look at single tokens. Modules that keep a state are
found by their calls of the cache, and run batch by batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from server.kernels.upload import upload
from server.model.recurrent.rows import Rows, RowsOutput, join, zeros_like_output
from server.model.recurrent.states import (
    RecurrentBatch,
    RecurrentCache,
    StateKey,
    StateShape,
    StateShapes,
    StepStates,
)
from server.model.step import SequenceChunk

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
        kind, split = type(call.module), _SplitForward(call.module.forward, call.output)
        if kind not in can_resume:
            can_resume[kind] = split.can_resume(call, num_tokens)
        split.resumes_by_token = not can_resume[kind]
        call.module.forward = split


class _SplitForward:
    """The forward of a module, called on each batch of a step with a cache of its own.

    Args:
        sample: an output of the module.
    """

    def __init__(self, forward: Callable[..., Any], sample: Any):
        self._forward, self._sample = forward, sample
        self.resumes_by_token = False  # whether tokens after a state run one by one

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        step = next((value for value in (*args, *kwargs.values()) if isinstance(value, StepStates)), None)
        if step is None:  # this module is inside another that was split
            return self._forward(*args, **kwargs)
        if step.returns_zeros:
            return zeros_like_output(self._sample, step.num_tokens)
        outputs = []
        for batch in step.batches:
            cache = step.batch_cache(batch)
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
    chunks: Sequence[SequenceChunk], device: torch.device, token_by_token: bool = False
) -> list[RecurrentBatch]:
    """Return the batches of a step: each piece of a prompt, and all decodes together unless ``token_by_token``."""
    batches, row = [], 0
    decodes: list[tuple[int, SequenceChunk]] = []
    for chunk in chunks:
        if chunk.num_tokens == 1 and chunk.num_cached and not token_by_token:
            decodes.append((row, chunk))
        else:
            batches.append(_batch(range(row, row + chunk.num_tokens), [chunk], device))
        row += chunk.num_tokens
    if decodes:
        batches.append(_batch([row for row, _ in decodes], [chunk for _, chunk in decodes], device))
    return batches


def _batch(rows: Sequence[int], chunks: Sequence[SequenceChunk], device: torch.device) -> RecurrentBatch:
    sources = [chunk.slot if chunk.resumes is None else chunk.resumes for chunk in chunks]
    return RecurrentBatch(
        rows=upload(np.asarray(rows, np.int64), device),
        slots=upload(np.array([chunk.slot for chunk in chunks], np.int64), device),
        sources=upload(np.array(sources, np.int64), device),
        num_tokens=chunks[0].num_tokens,
        has_state=chunks[0].num_cached > 0,
    )
