"""States of recurrent layers: a fixed number of bytes for each sequence, whatever its length.

transformers' recurrent and convolution modules read their states from a cache object and write them back to it
(``transformers.cache_utils.LinearAttentionLayer``). Here they get a ``RecurrentCache``, which holds the states of the
sequences that the module runs together. New states stay in ``StepStates`` until the step has succeeded, so that a step
that failed can be run again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from server.model.errors import NotBatchableError
from server.model.step import SequenceChunk

CPU = torch.device("cpu")
NO_ROWS = -1, 0  # of a sequence without states; a trial of native kernels writes the first row


class StateKey(NamedTuple):
    """One state of one layer."""

    layer: int
    kind: str  # by the names of the methods of ``RecurrentCache``
    number: int = 0  # among the layer's states of this kind


@dataclass(frozen=True)
class StateShape:
    """The shape of one state of one sequence."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return self.dtype.itemsize * torch.Size(self.shape).numel()


StateShapes = Mapping[StateKey, StateShape]


def states_bytes(shapes: StateShapes) -> int:
    """Return the bytes of all states of one sequence."""
    return sum(shape.nbytes for shape in shapes.values())


def state_rows(*, has_gpu: bool, has_native: bool) -> int:
    """Return 2 where kernels or graphs write the states after a step beside those before it, else 1."""
    return 2 if has_gpu or has_native else 1


def as_native(shapes: StateShapes) -> StateShapes:
    """Return states as native kernels keep them, but for padding: in float32."""
    return {key: replace(shape, dtype=torch.float32) for key, shape in shapes.items()}


class StateCache:
    """The states of all running sequences, each in the slot that the engine assigned.

    On a CPU the system allocates memory row by row, at the first use.

    Args:
        shapes: of one sequence's states.
        num_slots: of sequences and snapshots.
        device: of the states.
        num_double: slots, the first ones, that have a second row, to which the states after a step are written.
    """

    def __init__(self, shapes: StateShapes, num_slots: int, device: torch.device = CPU, *, num_double: int = 0):
        self.is_double = num_double > 0
        self._rows = list(range(num_slots))  # the current one of each slot
        self._next_rows = [num_slots + slot if slot < num_double else slot for slot in range(num_slots)]
        self._tensors = {
            key: torch.zeros((num_slots + num_double, *shape.shape), dtype=shape.dtype, device=device)
            for key, shape in shapes.items()
        }

    def tensor(self, key: StateKey) -> torch.Tensor:
        """Return a state of all slots, ``(rows, ...)``."""
        return self._tensors[key]

    def has(self, key: StateKey) -> bool:
        return key in self._tensors

    def rows_of(self, chunk: SequenceChunk) -> tuple[int, int]:
        """Return the row with the states before a chunk, -1 for the beginning, and the row for those after it."""
        if not self._tensors:
            return NO_ROWS
        before = chunk.slot if chunk.resumes is None else chunk.resumes
        return self._rows[before] if chunk.num_cached else -1, self._next_rows[chunk.slot]

    def advance(self, slots: Sequence[int]) -> None:
        """Make the rows that were written in a step the current ones of some slots."""
        if self._tensors:
            for slot in slots:
                self._rows[slot], self._next_rows[slot] = self._next_rows[slot], self._rows[slot]

    def read(self, key: StateKey, rows: torch.Tensor) -> torch.Tensor:
        """Return a copy of some states, ``(rows, ...)``."""
        return self._tensors[key].index_select(0, rows)

    def copy(self, source: int, target: int) -> None:
        """Copy all states of one slot to another."""
        to, of = self._rows[target], self._rows[source]
        for tensor in self._tensors.values():
            tensor[to] = tensor[of]

    def begin_chunk(self, chunk: SequenceChunk) -> tuple[int, int]:
        """Return the rows with the states before and after a chunk, and let the next chunk begin from these.

        A snapshot that the chunk resumes from is copied first, and nobody has to keep it.
        """
        if chunk.resumes is not None:
            self.copy(chunk.resumes, chunk.slot)
        rows = self.rows_of(replace(chunk, resumes=None))
        self.advance([chunk.slot])
        return rows

    def row_of(self, slot: int) -> int:
        """Return the current row of a slot."""
        return self._rows[slot]

    def copy_rows(self, keys: Iterable[StateKey], rows: Iterable[tuple[int, int]]) -> None:
        """Copy some states from one row to another, for each pair of rows."""
        for key in keys:
            tensor = self._tensors[key]
            for source, target in rows:
                tensor[target] = tensor[source]

    def release(self, slot: int) -> None:
        """Do nothing: the states of a finished sequence are never read, since a new sequence begins without states."""

    def write(self, key: StateKey, rows: torch.Tensor, states: torch.Tensor) -> None:
        tensor = self._tensors[key]
        tensor.index_copy_(0, rows, states.to(tensor.dtype))


StateReader = Callable[[StateKey], torch.Tensor | None]  # None at the beginning of sequences


class UnsupportedCacheError(NotBatchableError, AttributeError):
    """A model asks its cache for an attribute that ours does not have."""


class AttentionPassThrough:
    """The methods of a cache besides states, by transformers' names; keys and values pass through to the hooks."""

    is_compileable = False

    def __getattr__(self, name: str) -> Any:
        raise UnsupportedCacheError(f"the model has layers that use transformers' own cache ({name})")

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any) -> Any:
        return key_states, value_states

    def update_indexer(self, key_states: torch.Tensor, layer_idx: int) -> torch.Tensor:
        del layer_idx
        return key_states

    def get_query_offset(self, layer_idx: int = 0) -> int:
        del layer_idx
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        del layer_idx
        return query_length, 0

    def get_seq_length(self, layer_idx: int = 0) -> int:
        del layer_idx
        return 0


class RecurrentCache(AttentionPassThrough):
    """The cache of a recurrent module that runs some sequences as one batch, by transformers' names.

    Args:
        read: returns a state of the sequences, ``(sequences, ...)``; None at the beginning of sequences.
    """

    def __init__(self, read: StateReader = lambda _: None):
        self._read = read
        self.states: dict[StateKey, torch.Tensor] = {}  # the latest; some modules write in place

    def get_conv_state(self, layer_idx: int, state_idx: int = 0) -> torch.Tensor | None:
        """Return the last inputs, ``(sequences, channels, width)``."""
        return self._get(StateKey(layer_idx, "conv", state_idx))

    def get_recurrent_state(self, layer_idx: int, state_idx: int = 0) -> torch.Tensor | None:
        """Return a recurrent state, ``(sequences, ...)``."""
        return self._get(StateKey(layer_idx, "recurrent", state_idx))

    def get_linear_cache(self, layer_idx: int) -> torch.Tensor | None:
        """Return a recurrent state by MiniMax's name, ``(sequences, ...)``."""
        return self._get(StateKey(layer_idx, "linear"))

    def update_conv_state(
        self, conv_states: torch.Tensor, layer_idx: int, state_idx: int = 0, conv_kernel_size: int | None = None
    ) -> torch.Tensor:
        """Append inputs ``(sequences, ..., tokens)`` to those kept, with zeros before the first, and return all.

        Mirrors ``LinearAttentionLayer.update_conv_state``.
        """
        key = StateKey(layer_idx, "conv", state_idx)
        kept = self._get(key)
        full = conv_states if kept is None else torch.cat([kept, conv_states], -1)
        width = conv_kernel_size or (conv_states if kept is None else kept).shape[-1]
        if full.shape[-1] < width:
            full = F.pad(full, (width - full.shape[-1], 0))
        self.states[key] = full[..., -width:].clone()
        return full

    def update_recurrent_state(
        self, recurrent_states: torch.Tensor, layer_idx: int, state_idx: int = 0
    ) -> torch.Tensor:
        """Keep a recurrent state, ``(sequences, ...)``."""
        self.states[StateKey(layer_idx, "recurrent", state_idx)] = recurrent_states
        return recurrent_states

    def set_linear_cache(self, layer_idx: int, linear_cache: torch.Tensor) -> None:
        """Keep a recurrent state by MiniMax's name, ``(sequences, ...)``."""
        self.states[StateKey(layer_idx, "linear")] = linear_cache

    def is_recording_past(self, layer_idx: int) -> bool:
        """Return False: a step that failed is run again from the states before it."""
        del layer_idx
        return False

    def get_recurrent_states_to_keep(self, layer_idx: int | None = None) -> int:
        """Return 0: no states between a chunk's tokens are kept (transformers 5.25)."""
        del layer_idx
        return 0

    def increase_count(self, layer_idx: int, state_idx: int) -> None:
        """Do nothing: the engine counts tokens (transformers 5.25)."""

    def _get(self, key: StateKey) -> torch.Tensor | None:
        if key not in self.states:
            kept = self._read(key)
            if kept is None:
                return None
            self.states[key] = kept
        return self.states[key]


@dataclass(frozen=True)
class RecurrentBatch:
    """Tokens of a step that recurrent modules run together: several of one sequence, or one each of several."""

    rows: torch.Tensor  # indices of the tokens in the step
    sources: torch.Tensor  # rows of ``StateCache`` with the sequences' states before the step
    targets: torch.Tensor  # rows for those after it
    num_tokens: int  # tokens of each sequence
    has_state: bool

    @property
    def size(self) -> tuple[int, int]:
        """Sequences and tokens of each, the leading dimensions of a module's input."""
        return len(self.targets), self.num_tokens


@dataclass
class StepStates(AttentionPassThrough):
    """The cache that a model is called with in a step, for modules wrapped by ``split_recurrent_modules``.

    Args:
        token_by_token: run the tokens of a sequence one by one, so that its bits do not depend on its chunks.
        returns_zeros: whether recurrent modules return zeros, to look at the modules around them.
    """

    batches: Sequence[RecurrentBatch]
    slots: Sequence[int] = ()  # of the sequences
    copies: Sequence[tuple[int, int]] = ()  # slots to copy from and to, once the step has succeeded
    cache: StateCache | None = None  # None if no sequence has states yet
    token_by_token: bool = False
    returns_zeros: bool = False
    rows_now: torch.Tensor | None = None  # tokens that the running recurrent module sees; None outside of them
    _pending: list[tuple[StateKey, torch.Tensor, torch.Tensor]] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        return sum(len(batch.rows) for batch in self.batches)

    def batch_cache(self, batch: RecurrentBatch) -> RecurrentCache:
        """Return the cache of one module for one batch."""
        return RecurrentCache(self.reader(batch))

    def reader(self, batch: RecurrentBatch) -> StateReader:
        """Return what reads the states of a batch's sequences before the step."""
        cache = self.cache
        if not batch.has_state or cache is None:
            return lambda _: None
        return lambda key: cache.read(key, batch.sources)

    def collect(self, batch: RecurrentBatch, cache: RecurrentCache) -> None:
        """Write a module's new states beside the current ones, or hold them until the step has succeeded."""
        for key, states in cache.states.items():
            if self.cache is not None and self.cache.is_double:
                self.cache.write(key, batch.targets, states)
            else:
                self._pending.append((key, batch.targets, states))

    def commit(self) -> None:
        """Make the states after a step that succeeded the current ones."""
        if self.cache is not None:
            for pending in self._pending:
                self.cache.write(*pending)
            self.cache.advance(self.slots)
            for source, target in self.copies:
                self.cache.copy(source, target)
        self._pending.clear()
