"""DecodeSteps: steps of decodes that the kernels run one after another, while the engine handles their tokens."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from ctypes import addressof, c_int32, c_void_p
from itertools import accumulate

import numpy as np

from expert_store import StepLease
from server.kernels.native.library import Kernels
from server.kernels.native.structures.decode_run import DecodeResults, DecodeRun
from server.kernels.native.structures.layers import HeadCall, StepCall, StepSequence
from server.kernels.native.structures.sampling import RowSampling, SamplingCall
from server.model.blocks.query_scales import QueryScales
from server.model.blocks.workspace import BLOCK, PositionTables, Workspace
from server.model.chunk_weights import ChunkWeights
from server.model.experts.step_experts import StepExperts
from server.model.native_layers.embedding_rows import EmbeddingRows
from server.model.native_layers.layer_sequence import LayerSequence
from server.model.step import HostLogits, SequenceChunk, TokenChoice

MOST_STEPS = 32  # then other threads' calls of the kernels have their turn
SPARE_BLOCKS = MOST_STEPS // BLOCK + 1  # of a sequence, for the tokens of a run


class DecodeSteps:
    """Runs steps of one new token of each sequence ahead of the engine.

    The kernels choose the tokens of a step, and begin the next step with them at once. Meanwhile the engine handles the
    tokens, and then asks for that step. If it asks for another one, as a request has come or gone, the step that has
    begun ends before its next layer. It has changed nothing that counts: keys and values are written again, and
    states lie beside those before the step.

    It does so for steps whose experts are all in memory, without variants, images or adapters that are chosen by token,
    and whose tokens are chosen from logits alone. A step may begin ahead if each sequence has a block for its token.

    Args:
        sequence: the layers, which the kernels run in one call.
        workspace: the arrays of steps, with a step that is about to run where one begins here.
        positions: rotary positions.
        query_scales: factors of queries by their positions.
        embedding: of tokens.
        head: the call of the head, without the fields of a step.
    """

    def __init__(
        self,
        kernels: Kernels,
        sequence: LayerSequence,
        workspace: Workspace,
        *,
        positions: PositionTables,
        query_scales: QueryScales,
        embedding: EmbeddingRows,
        head: HeadCall,
    ):
        self._kernels, self._sequence, self._workspace = kernels, sequence, workspace
        self._positions, self._query_scales, self._embedding, self._head = positions, query_scales, embedding, head
        self._table = embedding.readable
        has_rows = self._table is not None and self._table.outputs >= head.vocabulary
        self.can_run = kernels.num_threads > 1 and has_rows
        self._buffers: _Buffers | None = None
        self._logits: HostLogits | None = None  # of the steps of an open run
        self._adapters: object = None
        self._leases: list[StepLease] = []  # of the step that has begun
        self._slots: list[int] = []  # of the sequences
        self._weights: list[ChunkWeights | None] = []
        self._next_tokens: list[int] = []  # of the step that has begun, with their positions
        self._places: list[int] = []
        self._index = 0  # of the step that has begun, or may not begin
        self._is_open = False

    def continues(self, chunks: Sequence[SequenceChunk]) -> bool:
        """Return whether a step is the one that has begun."""
        if not self._leases or len(chunks) != len(self._slots):
            return False
        known = zip(chunks, self._slots, self._weights, self._next_tokens, self._places, strict=True)
        for chunk, slot, weights, token, position in known:
            is_same = chunk.slot == slot and chunk.num_cached == position and chunk.choice is not None
            if not is_same or len(chunk.token_ids) != 1 or chunk.token_ids[0] != token or chunk.weights != weights:
                return False
        return True

    def stop(self) -> None:
        """Stop the step that has begun, if there is one. The kernels may be called by others then."""
        is_open, self._is_open = self._is_open, False
        try:
            if is_open:
                self._kernels.end_decodes()
        finally:
            for lease in self._leases:
                lease.__exit__(None, None, None)
            self._leases.clear()
            self._logits = self._adapters = None

    def begin(
        self,
        chunks: Sequence[SequenceChunk],
        num_groups: int,
        experts: StepExperts,
        logits_of: Callable[[int], HostLogits],
        adapters: object = None,
    ) -> list[int | None] | None:
        """Run the step that is described in the workspace.

        Args:
            chunks: of its sequences.
            num_groups: of layers with attention.
            experts: of the step.
            logits_of: returns logits for a number of rows, which the steps overwrite.
            adapters: what the workspace and the head refer to, if sequences have adapters.

        Returns:
            The chosen tokens, None for a row that allows none; None if the step has to run otherwise.
        """
        choices = _choices(chunks)
        if choices is None or not self._has_next(chunks, choices):
            return None
        lease = experts.hold_all()
        if lease is None:
            return None
        self._leases.append(lease)
        try:
            self._kernels.deferred.run()
            self._start(chunks, choices, num_groups, experts, logits=logits_of(len(chunks)), adapters=adapters)
        except BaseException:
            self.stop()
            raise
        return self._finish(experts)

    def take(self, chunks: Sequence[SequenceChunk], experts: StepExperts) -> list[int | None] | None:
        """Finish the step that has begun; returns as ``begin``.

        Args:
            chunks: of its sequences; None is returned if it is another step, which may run then.
        """
        choices = _choices(chunks)
        if choices is None or not self.continues(chunks):
            self.stop()
            return None
        assert self._buffers is not None
        try:
            # If this fails, the step runs again: the next one, which overwrites its states, may not have begun.
            self._kernels.deferred.run()
            is_prepared = self._prepare_next(self._buffers, chunks, choices, experts)
            if is_prepared and not self._kernels.allow_decodes(self._index + 2):
                self._leases.pop().__exit__(None, None, None)
        except BaseException:
            self.stop()
            raise
        return self._finish(experts)

    def _start(
        self,
        chunks: Sequence[SequenceChunk],
        choices: Sequence[TokenChoice],
        num_groups: int,
        experts: StepExperts,
        *,
        logits: HostLogits,
        adapters: object,
    ) -> None:
        """Let the kernels begin the step that is described in the workspace, and the next one if it may follow."""
        buffers = self._buffers
        if buffers is None or buffers.num_rows != len(chunks):
            buffers = self._buffers = _Buffers(len(chunks), self._workspace.call.hidden_size)
        self._logits, self._adapters = logits, adapters
        self._describe(buffers, chunks, num_groups, logits)
        self._slots = [chunk.slot for chunk in chunks]
        self._weights = [chunk.weights for chunk in chunks]
        self._places = [chunk.num_cached for chunk in chunks]
        self._index = 0
        buffers.set_rows(0, [choice.row for choice in choices], [choice.draw for choice in choices])
        num_allowed = 2 if self._prepare_next(buffers, chunks, choices, experts) else 1
        self._kernels.start_decodes(self._run, num_allowed, self.stop)
        self._is_open = True

    def _finish(self, experts: StepExperts) -> list[int | None]:
        """Finish the step that has begun, while the next one may begin."""
        buffers, index = self._buffers, self._index
        assert buffers is not None
        try:
            self._kernels.await_decodes(index + 1)
            tokens = buffers.tokens(index)
            held = experts.residents(self._leases[0])
            chosen = self._workspace.copy_chosen(buffers.chosen[index % 2], self._sequence.top_ks)
            self._sequence.finish_all(held, chosen, buffers.counts[index % 2].copy())
        except BaseException:
            self.stop()
            raise
        del self._leases[0]
        if not self._leases:
            self.stop()
        self._index += 1
        self._next_tokens = tokens
        self._places = [place + 1 for place in self._places]
        return [token if token >= 0 else None for token in tokens]

    def _has_next(self, chunks: Sequence[SequenceChunk], choices: Sequence[TokenChoice]) -> bool:
        """Return whether each sequence can go on with another token after these."""
        last = 0
        for chunk, choice in zip(chunks, choices, strict=True):
            after = chunk.num_cached + 1
            if choice.next_draw is None or len(chunk.block_tables[0]) * BLOCK <= after:
                return False
            last = max(last, after)
        return self._positions.has(last) and self._query_scales.has(last)

    def _prepare_next(
        self,
        buffers: _Buffers,
        chunks: Sequence[SequenceChunk],
        choices: Sequence[TokenChoice],
        experts: StepExperts,
    ) -> bool:
        """Describe the step after one that has begun, if there is one and experts stay where they are."""
        if self._index + 1 >= MOST_STEPS or not self._has_next(chunks, choices) or not self._add_blocks(chunks):
            return False
        lease = experts.hold_all(overlaps=True)
        if lease is None:
            return False
        if lease.version != self._leases[0].version:
            lease.__exit__(None, None, None)
            return False
        draws = [choice.next_draw or 0.0 for choice in choices]
        buffers.set_rows(self._index + 1, [choice.row for choice in choices], draws)
        self._leases.append(lease)
        return True

    def _describe(
        self,
        buffers: _Buffers,
        chunks: Sequence[SequenceChunk],
        num_groups: int,
        logits: HostLogits,
    ) -> None:
        """Describe the run to the kernels, as the workspace describes its first step."""
        assert self._table is not None
        given, count = self._workspace.call, len(chunks)
        call = self._call = StepCall.from_buffer_copy(given)
        call.slots, call.most_experts = self._sequence.address_slots(self._leases[0])
        sequences = self._sequences = (StepSequence * count).from_buffer_copy(
            (StepSequence * count).from_address(given.sequences)
        )
        self._num_blocks = [len(chunk.block_tables[0]) for chunk in chunks]
        *firsts, total = accumulate((length + SPARE_BLOCKS for length in self._num_blocks), initial=0)
        self._tables = np.zeros((num_groups, total), np.int32)
        for sequence, chunk, first, length in zip(sequences, chunks, firsts, self._num_blocks, strict=True):
            sequence.first_block = first
            for row, table in zip(self._tables, chunk.block_tables, strict=True):
                row[first : first + length] = table
        addresses = [self._tables.ctypes.data + group * self._tables.strides[0] for group in range(num_groups)]
        self._groups = (c_void_p * num_groups)(*addresses)
        self._token_ids = (c_int32 * count)(*[chunk.token_ids[0] for chunk in chunks])
        call.sequences, call.block_tables = addressof(sequences), addressof(self._groups)
        call.token_ids = addressof(self._token_ids)
        head = self._run_head = HeadCall.from_buffer_copy(self._head)
        head.hidden, head.logits = self._workspace.residual_address, logits.address
        buffers.fill_head(head)
        buffers.reserve(
            len(self._sequence.top_ks) * count * call.most_top_k, len(self._sequence.top_ks), call.most_experts
        )
        self._run = DecodeRun(
            layers=addressof(self._sequence.specs),
            num_layers=self._sequence.num_layers,
            step=addressof(call),
            sequences=addressof(sequences),
            token_ids=addressof(self._token_ids),
            head=addressof(head),
            embedding=addressof(self._table),
            embedding_norm=self._embedding.norm,
            even=buffers.results(0, logits),
            odd=buffers.results(1, logits),
            num_streams=self._workspace.num_streams,
            embedding_scale=self._embedding.scale,
        )

    def _add_blocks(self, chunks: Sequence[SequenceChunk]) -> bool:
        """Add new blocks to the tables of the run; return False if there is no place for them."""
        for index, chunk in enumerate(chunks):
            known, length = self._num_blocks[index], len(chunk.block_tables[0])
            if length == known:
                continue
            first = self._sequences[index].first_block
            end = self._sequences[index + 1].first_block if index + 1 < len(chunks) else self._tables.shape[1]
            if first + length > end:
                return False
            for row, table in zip(self._tables, chunk.block_tables, strict=True):
                row[first + known : first + length] = table[known:]
            self._num_blocks[index] = length
        return True


class _Buffers:
    """The arrays of a run for a number of sequences: two of each result, for even and odd steps."""

    def __init__(self, num_rows: int, hidden_size: int):
        self.num_rows = num_rows
        self._normed = np.empty((num_rows, hidden_size), np.float32)
        self._head_rows = array("i", range(num_rows))
        self._rows = [(RowSampling * num_rows)() for _ in range(2)]
        self._tokens = [(c_int32 * num_rows)() for _ in range(2)]
        self.chosen = [np.empty(0, np.int32) for _ in range(2)]
        self.counts = [np.zeros((0, 0), np.int64) for _ in range(2)]

    def reserve(self, num_choices: int, num_layers: int, num_places: int) -> None:
        """Make arrays for so many choices of all layers, and for counts ``(layers, places)``."""
        if len(self.chosen[0]) != num_choices:
            self.chosen = [np.empty(num_choices, np.int32) for _ in range(2)]
        if self.counts[0].shape != (num_layers, num_places):
            self.counts = [np.zeros((num_layers, num_places), np.int64) for _ in range(2)]

    def fill_head(self, call: HeadCall) -> None:
        """Let the head score all rows."""
        call.rows, _ = self._head_rows.buffer_info()
        call.normed = self._normed.ctypes.data
        call.num_rows = call.num_logits = self.num_rows

    def set_rows(self, step: int, rows: Sequence[RowSampling], draws: Sequence[float]) -> None:
        """Set how the tokens of a step are chosen."""
        target = self._rows[step % 2]
        for index, (row, draw) in enumerate(zip(rows, draws, strict=True)):
            target[index] = row
            target[index].draw = draw

    def tokens(self, step: int) -> list[int]:
        """Return the chosen tokens of a step, -1 for a row that allows none."""
        return list(self._tokens[step % 2])

    def results(self, parity: int, logits: HostLogits) -> DecodeResults:
        """Describe the results of even or odd steps."""
        rows, size = logits.rows.shape
        sampling = SamplingCall(logits.address, self._rows[parity], self._tokens[parity], rows, size, size)
        return DecodeResults(sampling, self.chosen[parity].ctypes.data, self.counts[parity].ctypes.data)


def _choices(chunks: Sequence[SequenceChunk]) -> list[TokenChoice] | None:
    """Return how the tokens of a step are chosen; None unless each chunk is one token that something follows."""
    choices = []
    for chunk in chunks:
        weights, is_plain = chunk.weights, chunk.media is None and chunk.resumes is None
        if weights is not None and (weights.variant is not None or weights.chooser is not None):
            return None
        if chunk.choice is None or not is_plain or len(chunk.token_ids) != 1 or chunk.num_hidden:
            return None
        choices.append(chunk.choice)
    return choices
