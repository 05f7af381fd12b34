"""What recurrent layers keep of each sequence: a fixed number of bytes, however long it is.

transformers' recurrent and convolution modules take their states from a cache object and give them back to it
(``transformers.cache_utils.LinearAttentionLayer``). Here they get one of ours, which holds the states of those
sequences that the module runs together. New states stay with the step until it has succeeded, so that a step that
failed can be run again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from .errors import NotBatchableError

CPU = torch.device("cpu")


class StateKey(NamedTuple):
    """One state of one layer."""

    layer: int
    kind: str  # as the methods of ``CellCache`` call it
    number: int = 0  # among those of its kind


@dataclass(frozen=True)
class StateShape:
    """One state of one sequence."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return self.dtype.itemsize * torch.Size(self.shape).numel()


StateShapes = Mapping[StateKey, StateShape]


def states_bytes(shapes: StateShapes) -> int:
    """Bytes of all states of one sequence."""
    return sum(shape.nbytes for shape in shapes.values())


class StateCache:
    """The states of all running sequences, each in the slot that the engine gave it.

    Memory is taken slot by slot, with the first use.
    """

    def __init__(self, shapes: StateShapes, num_slots: int, device: torch.device = CPU):
        self._tensors = {
            key: torch.zeros((num_slots, *shape.shape), dtype=shape.dtype, device=device)
            for key, shape in shapes.items()
        }

    def read(self, key: StateKey, slots: torch.Tensor) -> torch.Tensor:
        """A copy, ``(slots, ...)``."""
        return self._tensors[key].index_select(0, slots)

    def copy(self, source: int, target: int) -> None:
        """All states of one slot to another."""
        for tensor in self._tensors.values():
            tensor[target] = tensor[source]

    def release(self, slot: int) -> None:
        """The sequence that had the slot is gone. What it left is never read: a new one begins without a past."""

    def write(self, key: StateKey, slots: torch.Tensor, states: torch.Tensor) -> None:
        tensor = self._tensors[key]
        tensor.index_copy_(0, slots, states.to(tensor.dtype))


class ForeignCacheError(NotBatchableError, AttributeError):
    """A model wants more of its cache than ours has."""


class AttentionPassage:
    """What models ask of a cache besides states, in transformers' names. Keys and values go on to the seam."""

    is_compileable = False

    def __getattr__(self, name: str) -> Any:
        raise ForeignCacheError(f"the model asks its cache for {name}")

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any) -> Any:
        return key_states, value_states

    def get_query_offset(self, layer_idx: int = 0) -> int:
        del layer_idx
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        del layer_idx
        return query_length, 0

    def get_seq_length(self, layer_idx: int = 0) -> int:
        del layer_idx
        return 0


class CellCache(AttentionPassage):
    """The cache of a recurrent module that runs some sequences as one batch; transformers' names.

    Args:
        read: the states that the sequences have, ``(sequences, ...)``; None at the beginning of sequences.
    """

    def __init__(self, read: Callable[[StateKey], torch.Tensor | None] = lambda _: None):
        self._read = read
        self.states: dict[StateKey, torch.Tensor] = {}  # as modules left them, some of which write in place

    def get_conv_state(self, layer_idx: int, state_idx: int = 0) -> torch.Tensor | None:
        """``(sequences, channels, width)``: the last inputs."""
        return self._get(StateKey(layer_idx, "conv", state_idx))

    def get_recurrent_state(self, layer_idx: int, state_idx: int = 0) -> torch.Tensor | None:
        """``(sequences, ...)``."""
        return self._get(StateKey(layer_idx, "recurrent", state_idx))

    def get_linear_cache(self, layer_idx: int) -> torch.Tensor | None:
        """MiniMax's name of a recurrent state, ``(sequences, ...)``."""
        return self._get(StateKey(layer_idx, "linear"))

    def update_conv_state(
        self, conv_states: torch.Tensor, layer_idx: int, state_idx: int = 0, conv_kernel_size: int | None = None
    ) -> torch.Tensor:
        """Inputs ``(sequences, ..., tokens)``; returns them after those that were kept, zeros before the first.

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
        """Keep ``(sequences, ...)``."""
        self.states[StateKey(layer_idx, "recurrent", state_idx)] = recurrent_states
        return recurrent_states

    def set_linear_cache(self, layer_idx: int, linear_cache: torch.Tensor) -> None:
        """Keep ``(sequences, ...)``."""
        self.states[StateKey(layer_idx, "linear")] = linear_cache

    def is_recording_past(self, layer_idx: int) -> bool:
        """Never: what failed is run again from what was kept before."""
        del layer_idx
        return False

    def _get(self, key: StateKey) -> torch.Tensor | None:
        if key not in self.states:
            kept = self._read(key)
            if kept is None:
                return None
            self.states[key] = kept
        return self.states[key]


@dataclass(frozen=True)
class Part:
    """Some tokens of a step that recurrent modules run together: one sequence's, or one of each of several."""

    rows: torch.Tensor  # of the step's tokens
    slots: torch.Tensor  # of the sequences
    sources: torch.Tensor  # slots that have the sequences' states before
    num_tokens: int  # of each sequence
    has_past: bool

    @property
    def size(self) -> tuple[int, int]:
        """Sequences and tokens, as modules are given them."""
        return len(self.slots), self.num_tokens


@dataclass
class StepStates(AttentionPassage):
    """What a model is given as its cache in a step; only modules that ``cells`` has wrapped can use it.

    Args:
        one_by_one: run the tokens of a sequence one after the other, so that no bit depends on how it was cut.
        is_hollow: recurrent modules give zeros; for looking at what is around them.
    """

    parts: Sequence[Part]
    copies: Sequence[tuple[int, int]] = ()  # from one slot to another, once the step is done
    cache: StateCache | None = None  # none where no sequence has a past
    one_by_one: bool = False
    is_hollow: bool = False
    _staged: list[tuple[StateKey, torch.Tensor, torch.Tensor]] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        return sum(len(part.rows) for part in self.parts)

    def open(self, part: Part) -> CellCache:
        """The cache of one module for one part."""
        cache = self.cache
        if not part.has_past or cache is None:
            return CellCache()
        return CellCache(lambda key: cache.read(key, part.sources))

    def stage(self, part: Part, cell: CellCache) -> None:
        """Keep what a module made of its states until the step is done."""
        self._staged += [(key, part.slots, states) for key, states in cell.states.items()]

    def commit(self) -> None:
        """The step is done."""
        if self.cache is not None:
            for staged in self._staged:
                self.cache.write(*staged)
            for source, target in self.copies:
                self.cache.copy(source, target)
        self._staged.clear()
