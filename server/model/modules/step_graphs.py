"""StepGraphs: decode steps that CUDA graphs run, so that a step is one launch, or a few in each layer.

Where all experts are on the device, one graph is the whole step. Where some may be missing, the step is cut at its
layers of experts: a graph ends with a layer's router, another runs the experts that are there, and between both and the
next the host brings the others (``HitsFirst``).

Graphs are made of the second step of its kind: that many sequences, with room for that many partitions of keys. The
first runs operation by operation, which compiles the kernels. What differs from step to step lies at fixed places in
the device's memory: tokens, positions, blocks of the KV cache, and slots of experts. While a graph is captured nothing
waits for the device, and nothing is copied from or to the host.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from server.kernels.compute_pool import ComputePool
from server.kernels.upload import upload, upload_into
from server.model.attention.decode_attention import decode_rows
from server.model.attention.kv_cache import KVCache
from server.model.attention.paged_attention import StepAttention
from server.model.experts.strategies.hits_first import HitsFirst, Segment
from server.model.experts.strategies.strategy import ExpertStrategy
from server.model.experts.strategies.waitless import DeviceChoices, WaitlessExperts
from server.model.recurrent.recurrent_modules import rows_of_chunks
from server.model.recurrent.states import RecurrentBatch, StateCache, StepStates
from server.model.step import SequenceChunk, StepTokens, positions_of

log = logging.getLogger(__name__)

TOKEN_NUMBERS = 3  # of a token: its id, position and row of logits
MOST_GRAPHS = 32  # each takes memory for its launches
Body = Callable[[StepAttention, ExpertStrategy, Sequence[torch.Tensor], StepStates | None], torch.Tensor]
Kind = tuple[int, ...]
Strategy = TypeVar("Strategy", WaitlessExperts, HitsFirst)


class StepGraphs:
    """The graphs of a model.

    Args:
        body: runs a step, of its attention, its strategy for experts, its tokens, positions and rows of logits on the
            device, and its recurrent states; returns logits, float32 on the device.
    """

    def __init__(self, pool: ComputePool, device: torch.device, body: Body):
        self._pool, self._device, self._body = pool, device, body
        self._graphs: OrderedDict[Kind, _Graph[Any]] = OrderedDict()
        self._places: tuple[Any, ...] = ()  # of the memory that graphs use
        self._memory: Any = None  # that all graphs share
        self._logits: dict[int, torch.Tensor] = {}  # of all graphs of about as many sequences, by a power of two
        self._is_off = False  # this model can't be captured

    def takes(self, chunks: Sequence[SequenceChunk], tokens: StepTokens) -> bool:
        """Return whether a step has one token of each sequence, none of them the first, and nothing else."""
        return (
            not self._is_off
            and not tokens.hidden_rows
            and all(chunk.num_tokens == 1 and chunk.num_logits == 1 and chunk.num_cached for chunk in chunks)
        )

    def run(
        self,
        chunks: Sequence[SequenceChunk],
        tokens: StepTokens,
        cache: KVCache,
        strategy: WaitlessExperts | HitsFirst,
        *,
        states: StateCache | None,
    ) -> torch.Tensor:
        """Run a step; return its logits, float32 on the device, valid until the next step.

        Args:
            strategy: runs the layers of experts.
            states: of recurrent layers; those after the step are beside the current ones then.
        """
        places = (cache, states, *strategy.arenas)
        if places != self._places:
            self._graphs.clear()
            self._places = places
        partitions = [_room_of(chunks, group, cache) for group in range(len(cache.groups))]
        kind = isinstance(strategy, HitsFirst), len(chunks), *partitions
        graph = self._graphs.get(kind)
        numbers = _numbers(chunks, tokens, states)
        if graph is None:
            attention = StepAttention(chunks, cache, self._pool, partitions)
            kind_of_graph: type[_Graph[Any]] = _CutGraph if isinstance(strategy, HitsFirst) else _StepGraph
            graph = self._graphs[kind] = kind_of_graph(self._body, attention, upload(numbers, self._device), states)
            if len(self._graphs) > MOST_GRAPHS:
                self._graphs.popitem(last=False)
            return graph.run(strategy)
        self._graphs.move_to_end(kind)
        graph.update(chunks, numbers)
        if graph.is_captured:
            return graph.replay(strategy)
        if not graph.vocab_size:  # no step of its kind has succeeded
            return graph.run(strategy)
        if self._memory is None:
            self._memory = torch.cuda.graph_pool_handle()
        try:
            graph.capture(strategy, self._memory, self._room_for_logits(len(chunks), graph.vocab_size))
        except RuntimeError as error:
            log.info("decode steps run without CUDA graphs, as one can't be captured: %s", error)
            self._is_off = True
            self._graphs.clear()
            strategy.forget()
            return graph.run(strategy)
        return graph.replay(strategy)

    def _room_for_logits(self, count: int, vocab_size: int) -> torch.Tensor:
        room = 1 << (count - 1).bit_length()
        if room not in self._logits:
            self._logits[room] = torch.empty(room, vocab_size, device=self._device)
        return self._logits[room][:count]


class _Graph(ABC, Generic[Strategy]):
    """A step of one kind, and the places that it reads and writes."""

    def __init__(self, body: Body, attention: StepAttention, numbers: torch.Tensor, states: StateCache | None):
        self._body, self._attention, self._numbers = body, attention, numbers
        self._tokens = numbers[:TOKEN_NUMBERS]
        self._states = None
        if states is not None:
            rows = torch.arange(numbers.shape[1], device=numbers.device)
            batch = RecurrentBatch(rows, numbers[-2], numbers[-1], num_tokens=1, has_state=True)
            self._states = StepStates([batch], cache=states)
        self._graph: Any = None  # the last one
        self._logits = torch.empty(0)
        self.vocab_size = 0  # known once the step has run

    @property
    def is_captured(self) -> bool:
        return self._graph is not None

    def update(self, chunks: Sequence[SequenceChunk], numbers: npt.NDArray[np.int64]) -> None:
        self._attention.update(chunks)
        upload_into(numbers, self._numbers)

    def run(self, strategy: Strategy) -> torch.Tensor:
        """Run the step operation by operation."""
        logits = self._body(self._attention, strategy, self._tokens.unbind(), self._states)
        self.vocab_size = logits.shape[-1]
        return logits

    @abstractmethod
    def capture(self, strategy: Strategy, memory: Any, logits: torch.Tensor) -> None:
        """Record the step.

        Args:
            memory: that graphs share.
            logits: where it writes them.
        """

    @abstractmethod
    def replay(self, strategy: Strategy) -> torch.Tensor:
        """Run the step as it was recorded."""


class _StepGraph(_Graph[WaitlessExperts]):
    """One graph for all of a step."""

    _choices: DeviceChoices | None = None

    def run(self, strategy: WaitlessExperts) -> torch.Tensor:
        logits = super().run(strategy)
        strategy.gathered = strategy.gather()
        return logits

    def capture(self, strategy: WaitlessExperts, memory: Any, logits: torch.Tensor) -> None:
        with _capture(memory, logits.device) as capture:
            logits.copy_(self.run(strategy))
        self._graph, self._choices, self._logits = capture.graph, strategy.gathered, logits

    def replay(self, strategy: WaitlessExperts) -> torch.Tensor:
        self._graph.replay()
        strategy.gathered = self._choices
        return self._logits


class _CutGraph(_Graph[HitsFirst]):
    """Two graphs for each layer of experts and what comes before it, and one for the end."""

    _segments: Sequence[Segment] = ()

    def capture(self, strategy: HitsFirst, memory: Any, logits: torch.Tensor) -> None:
        with _capture(memory, logits.device) as capture, strategy.captured(capture.cut) as segments:
            logits.copy_(self.run(strategy))
        self._graph, self._segments, self._logits = capture.graph, segments, logits

    def replay(self, strategy: HitsFirst) -> torch.Tensor:
        for segment in self._segments:
            strategy.replay(segment)
        self._graph.replay()
        return self._logits


class _Capture:
    """A recording of graphs; torch's own context also collects garbage and empties caches, which takes long."""

    def __init__(self, memory: Any):
        self._memory = memory
        self.begin()

    def begin(self) -> None:
        """Begin a graph, in the memory that all share."""
        self.graph = torch.cuda.CUDAGraph()
        # Other threads pin memory meanwhile.
        self.graph.capture_begin(pool=self._memory, capture_error_mode="thread_local")

    def cut(self) -> Any:
        """End the graph and begin another; return the one that has ended."""
        ended = self.graph
        ended.capture_end()
        self.begin()
        return ended


@contextmanager
def _capture(memory: Any, device: torch.device) -> Iterator[_Capture]:
    """Record what is launched."""
    current: Any = torch.cuda.current_stream(device)
    stream: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call,unused-ignore]
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        capture = _Capture(memory)
        try:
            yield capture
        except BaseException:
            with suppress(RuntimeError):  # of a capture that has failed
                capture.graph.capture_end()
            raise
        capture.graph.capture_end()
    current.wait_stream(stream)


def _room_of(chunks: Sequence[SequenceChunk], group: int, cache: KVCache) -> int:
    """Return a power of two of partitions that is enough for all rows of a group of layers."""
    from server.kernels.triton.decode_attention import most_partitions  # noqa: PLC0415  may not be installed

    return 1 << (most_partitions(decode_rows(chunks, group, cache)) - 1).bit_length()


def _numbers(chunks: Sequence[SequenceChunk], tokens: StepTokens, states: StateCache | None) -> npt.NDArray[np.int64]:
    """Return tokens, positions, rows of logits, and the rows of states before and after the step, if it has any."""
    numbers = np.array([tokens.token_ids, positions_of(chunks), tokens.logit_rows], np.int64)
    return numbers if states is None else np.concatenate([numbers, rows_of_chunks(chunks, states)])
