"""Workspace and Positions: the arrays of a step, kept from step to step, and their addresses for the kernels."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from ctypes import addressof, c_void_p
from enum import Enum

import numpy as np
import numpy.typing as npt
import torch

from server.kernels.native.structures.layers import StepCall, StepPredictions
from server.kernels.native.structures.matrices import Size
from server.model.recurrent.states import NO_ROWS
from server.model.step import SequenceChunk

BLOCK = int(Size.CACHE_BLOCK)  # tokens in a block of the KV cache
GROWTH = 1.5


class Workspace:
    """Arrays for steps of any number of tokens; they grow and never shrink.

    Args:
        hidden_size: values of a token.
        num_routed: layers with experts.
        top_k: experts a token, at most.
        num_experts: of the widest layer.
        is_exact: whether rows are never rounded before a product.
        num_streams: rows of a token's residual stream; 0 if that is one row and nothing else.
        growth: the capacity for a larger step than before, in tokens of that step.
    """

    def __init__(
        self,
        hidden_size: int,
        num_routed: int,
        top_k: int,
        num_experts: int,
        *,
        is_exact: bool,
        num_streams: int = 0,
        growth: float = GROWTH,
    ):
        self._hidden_size, self._num_routed, self._top_k = hidden_size, num_routed, top_k
        self._num_streams, self._growth = num_streams, growth
        self._capacity = 0
        self._num_shown = 0  # tokens of these tensors
        self._shown: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]] = {}
        self._predicted = np.empty(0, dtype=np.int32)
        self._parts = np.zeros(num_routed + 1, dtype=np.uint32)
        self._predictions = StepPredictions(parts=self._parts.ctypes.data)
        self.call = StepCall(
            hidden_size=hidden_size, most_top_k=top_k, most_experts=num_experts, is_exact=int(is_exact)
        )

    def of_one_step(self) -> Workspace:
        """Return another workspace for steps of the same model, no larger than its step."""
        call = self.call
        return Workspace(
            self._hidden_size,
            self._num_routed,
            self._top_k,
            int(call.most_experts),
            is_exact=bool(call.is_exact),
            num_streams=self._num_streams,
            growth=1.0,
        )

    @property
    def token_bytes(self) -> int:
        """Bytes of the arrays for each token."""
        numbers = np.dtype(np.float32).itemsize * self._hidden_size * (2 + self._num_streams)
        return numbers + 2 * np.dtype(np.float32).itemsize * self._num_routed * self._top_k

    def begin(
        self, chunks: Sequence[SequenceChunk], num_groups: int, states: Sequence[tuple[int, int]] | None = None
    ) -> int:
        """Prepare a step: its sequences, their block tables and the rows of their states.

        Args:
            chunks: of the sequences.
            num_groups: of layers with attention.
            states: the rows with states before and after the step (``StateCache.rows_of``); None if there are none.

        Returns:
            The furthest position of a token.
        """
        numbers: list[int] = []  # a ``StepSequence`` of each chunk, then the tables of each group
        row = block = end = 0
        for index, chunk in enumerate(chunks):
            num_tokens, num_cached = len(chunk.token_ids), chunk.num_cached
            rows = NO_ROWS if states is None else states[index]
            numbers += (row, num_tokens, num_cached, block, *rows)
            row += num_tokens
            block += len(chunk.block_tables[0])
            end = max(end, num_cached + num_tokens)
        self._reserve(row)
        bounds = [len(numbers)]
        for group in range(num_groups):
            for chunk in chunks:
                numbers += chunk.block_tables[group]
            bounds.append(len(numbers))
        self._numbers = array("i", numbers)
        address, _ = self._numbers.buffer_info()
        self._tables = (c_void_p * num_groups)(*[address + self._numbers.itemsize * bound for bound in bounds[:-1]])
        call = self.call
        call.tokens, call.num_sequences = row, len(chunks)
        call.sequences, call.block_tables = address, addressof(self._tables)
        self._token_ids = array("i")
        for chunk in chunks:
            self._token_ids.extend(chunk.token_ids)
        call.token_ids, _ = self._token_ids.buffer_info()
        call.slots = call.predictions = None
        return end - 1

    def predict(self, parts: Sequence[int], num_parts: int) -> None:
        """Let the calls of this step predict the choices of each layer with experts from the one before.

        Args:
            parts: see ``StepPredictions``, of each layer with experts; those with images have none.
            num_parts: of the predictions of a layer.
        """
        size = self._num_routed * self.call.tokens * self._top_k
        if len(self._predicted) < size:
            self._predicted = np.empty(int(size * GROWTH), dtype=np.int32)
        self._parts[: len(parts)] = parts
        self._predictions.chosen, self._predictions.num_parts = self._predicted.ctypes.data, num_parts
        self.call.predictions = addressof(self._predictions)

    @property
    def num_streams(self) -> int:
        """Rows of a token's residual stream; 0 if that is one row and nothing else."""
        return self._num_streams

    @property
    def hidden(self) -> npt.NDArray[np.float32]:
        """The residual stream, or the embeddings where it has several rows a token, ``(tokens, hidden)``."""
        return self._hidden[: self.call.tokens]

    @property
    def residual(self) -> npt.NDArray[np.float32]:
        """The residual stream, ``(tokens, hidden)`` or ``(tokens, streams, hidden)``."""
        return self._streams[: self.call.tokens] if self._num_streams else self.hidden

    @property
    def residual_address(self) -> int:
        address: int = self.call.streams if self._num_streams else self.call.hidden
        return address

    def begin_streams(self) -> None:
        """Begin each row of a token's residual stream with its embedding, where it has several."""
        if self._num_streams:
            self.residual[:] = self.hidden[:, None]

    @property
    def normed(self) -> npt.NDArray[np.float32]:
        """The input of experts, ``(tokens, hidden)``."""
        return self._normed[: self.call.tokens]

    def chosen(self, index: int, top_k: int) -> npt.NDArray[np.int32]:
        """Return the experts that the last call chose in a layer, ``(tokens, k)``.

        Args:
            index: of the layer among those with experts.
        """
        start = index * self.call.tokens * self._top_k
        return self._chosen[start : start + self.call.tokens * top_k].reshape(-1, top_k)

    def predicted(self, index: int, top_k: int) -> npt.NDArray[np.int64]:
        """Return the experts that were predicted of a layer, ``(tokens, k)``; see ``chosen``."""
        start = index * self.call.tokens * self._top_k
        return self._predicted[start : start + self.call.tokens * top_k].reshape(-1, top_k).astype(np.int64)

    def all_chosen(self, first: int, top_ks: Sequence[int]) -> Callable[[], list[npt.NDArray[np.int64]]]:
        """Return a function that returns the experts that the last call chose, ``(tokens, k)`` for each layer.

        Args:
            first: index of the first layer among those with experts.
            top_ks: experts a token in this layer and each that follows.
        """
        size = self.call.tokens * self._top_k
        return self.copy_chosen(self._chosen[first * size : (first + len(top_ks)) * size], top_ks)

    def copy_chosen(
        self, chosen: npt.NDArray[np.int32], top_ks: Sequence[int]
    ) -> Callable[[], list[npt.NDArray[np.int64]]]:
        """Return the same for choices of some layers that lie as the last call's, and may be overwritten then."""
        num_tokens, size = self.call.tokens, self.call.tokens * self._top_k
        chosen = chosen.copy()

        def by_layer() -> list[npt.NDArray[np.int64]]:
            layers = chosen.astype(np.int64).reshape(-1, size)
            return [layer[: num_tokens * top_k].reshape(-1, top_k) for layer, top_k in zip(layers, top_ks, strict=True)]

        return by_layer

    def weights(self, index: int, top_k: int) -> npt.NDArray[np.float32]:
        """Return the router's weights of ``chosen``."""
        start = index * self.call.tokens * self._top_k
        return self._weights[start : start + self.call.tokens * top_k].reshape(-1, top_k)

    def layer_inputs(self, index: int, top_k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return ``normed`` and ``weights`` of a layer as tensors in the same memory."""
        if self._num_shown != self.call.tokens:
            self._num_shown, self._shown = self.call.tokens, {}
        found = self._shown.get((index, top_k))
        if found is None:
            found = torch.from_numpy(self.normed), torch.from_numpy(self.weights(index, top_k))
            self._shown[index, top_k] = found
        return found

    def _reserve(self, num_tokens: int) -> None:
        if num_tokens <= self._capacity:
            return
        self._capacity = int(num_tokens * self._growth)
        self._shown = {}
        self._hidden = np.empty((self._capacity, self._hidden_size), dtype=np.float32)
        self._normed = np.empty_like(self._hidden)
        self._chosen = np.empty(self._num_routed * self._capacity * self._top_k, dtype=np.int32)
        self._weights = np.empty(len(self._chosen), dtype=np.float32)
        call = self.call
        call.hidden, call.normed = self._hidden.ctypes.data, self._normed.ctypes.data
        if self._num_streams:
            self._streams = np.empty((self._capacity, self._num_streams, self._hidden_size), dtype=np.float32)
            call.streams = self._streams.ctypes.data
        call.chosen, call.weights = self._chosen.ctypes.data, self._weights.ctypes.data


class PairAngles(Enum):
    """The columns of a model's table of cosines that hold one value for each pair, in order."""

    FIRST_HALF = "first half"
    EVERY_OTHER = "every other"
    ALL = "all"

    def of(self, table: torch.Tensor) -> torch.Tensor:
        """Select the columns: ``(positions, values)`` to ``(positions, pairs)``."""
        if self is PairAngles.ALL:
            return table
        return table[:, : table.shape[1] // 2] if self is PairAngles.FIRST_HALF else table[:, ::2]


Rotary = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


class Positions:
    """Tables of cosines and sines of rotary positions, which grow to the furthest position of any step.

    Args:
        rotary: computes cosines and sines of positions; None if the model has none.
        angles: the columns that are used.
        longest: the most positions.
    """

    STEP = 1024

    def __init__(self, rotary: Rotary | None, angles: PairAngles, longest: int):
        self._rotary, self.columns, self._longest = rotary, angles, longest
        self._num = 0
        self._addresses = np.zeros(2, dtype=np.uint64)
        self.rotary_dim = 0  # values of a head that are rotated, once there was a step

    @property
    def is_rotary(self) -> bool:
        """True if there are cosines and sines."""
        return self._rotary is not None

    @property
    def num_positions(self) -> int:
        """Positions of the tables, which are others once there are more."""
        return self._num

    def update(self, call: StepCall, last: int) -> None:
        """Set the addresses of the tables in a step's call, after growing them to position ``last``."""
        self.grow(last)
        address = self._addresses.ctypes.data
        call.cosines, call.sines = address, address + self._addresses.itemsize

    def angles(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return cosines and sines of the first positions, float32 ``(count, pairs)``."""
        cosines, sines = (torch.from_numpy(table[:count]) for table in self._tables)
        return cosines, sines

    def grow(self, last: int) -> tuple[int, int]:
        """Return the addresses of cosines and sines, after growing the tables to position ``last``."""
        if self._rotary is not None and last >= self._num:
            count = min(self._longest, max(last + 1, 2 * self._num, self.STEP))
            self._tables, self._num = self.of(torch.arange(count)), count
            self._addresses[:] = [table.ctypes.data for table in self._tables]
            self.rotary_dim = 2 * self._tables[0].shape[1]
        return int(self._addresses[0]), int(self._addresses[1])

    def of(self, positions: torch.Tensor) -> list[npt.NDArray[np.float32]]:
        """Compute cosines and sines, ``(positions, pairs)`` each.

        Args:
            positions: ``(positions,)``, or ``(axes, positions)`` if the model has several axes.
        """
        assert self._rotary is not None
        found, count = self._rotary(positions), positions.shape[-1]
        pair = (found.real, found.imag) if isinstance(found, torch.Tensor) else found
        return [self.columns.of(table.float().reshape(count, -1)).contiguous().numpy() for table in pair]


class PositionTables:
    """The rotary positions of all kinds of layers of a model.

    Args:
        kinds: in the order of their numbers (``RotaryMixer.use_rope``).
    """

    def __init__(self, kinds: Sequence[Positions]):
        self._kinds = kinds
        self._addresses = np.zeros((2, len(kinds)), dtype=np.uint64)
        self._address = int(self._addresses.ctypes.data)
        self._sizes = [-1] * len(kinds)  # positions of the tables at ``_addresses``; -1 if these are others

    def update(self, call: StepCall, last: int) -> None:
        """Set the addresses of the tables in a step's call, after growing them to position ``last``."""
        for index, positions in enumerate(self._kinds):
            size = positions.num_positions
            if size != self._sizes[index] or (last >= size and positions.is_rotary):
                self._addresses[:, index] = positions.grow(last)
                self._sizes[index] = positions.num_positions
        call.cosines, call.sines = self._address, self._address + self._addresses.strides[0]
        call.has_own_angles, call.newest = 0, None

    def has(self, position: int) -> bool:
        """Return whether the tables that the last step used have a position."""
        return all(size > position or not kind.is_rotary for size, kind in zip(self._sizes, self._kinds, strict=True))

    def take_rows(self, call: StepCall, positions: torch.Tensor) -> object:
        """Set cosines and sines of each row of a step, instead of each position; return what has to be kept meanwhile.

        Args:
            call: of the step.
            positions: ``(axes, tokens)``.
        """
        addresses = np.zeros_like(self._addresses)
        tables = [kind.of(positions) if kind.is_rotary else [] for kind in self._kinds]
        for index, parts in enumerate(tables):
            for part, table in enumerate(parts):
                addresses[part, index] = table.ctypes.data
        call.cosines, call.sines = addresses.ctypes.data, addresses.ctypes.data + addresses.strides[0]
        call.has_own_angles = 1
        return addresses, tables
