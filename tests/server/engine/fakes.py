"""A fake model whose next token depends on every token in the cache, and an engine over it. mypy checks this module."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from server.deferred_work import DeferredWork
from server.engine.engine import Engine, EngineLimits
from server.engine.interface import GenerationRequest, Grammar, GrammarSpec, RequestWeights, SamplingParams, TokenStream
from server.engine.kv.block_manager import BlockGroup, BlockManager
from server.engine.kv.state_snapshots import SnapshotPool
from server.engine.pass_planning import PassLimits
from server.engine.scheduler import SchedulerLimits
from server.engine.sequence_weights import SequenceWeights
from server.engine.text.detokenizer import Detokenizer, WindowDetokenizer
from server.model.attention.window import oldest_seen
from server.model.stalls import Stall
from server.model.step import ExpertCost, RoutedExperts, SequenceChunk, StepOutput

VOCABULARY = 256  # bytes
BLOCK_SIZE = 4
LAYERS = 2  # of a fake model, with keys of their own


def next_token(token_ids: Sequence[int]) -> int:
    """A lower-case letter that any change of the sequence changes."""
    return ord("a") + zlib.crc32(bytes(token_ids)) % 26


def continuation(prompt: Sequence[int], count: int) -> str:
    """Return the text that the fake model writes after a prompt."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(next_token(tokens))
    return bytes(tokens[len(prompt) :]).decode()


def hidden_state(token_ids: Sequence[int]) -> list[float]:
    """Return the hidden state of the last token; it depends on all tokens."""
    return [float(token_ids[-1]), float(len(token_ids)), next_token(token_ids) / 7]


class FakeModel:
    """Keeps tokens in blocks as a real model keeps keys and values, so that a wrong block changes the text."""

    def __init__(self, groups: Sequence[BlockGroup], num_states: int = 0, vocab_size: int = VOCABULARY):
        self._groups, self._vocab_size = groups, vocab_size
        self.states: list[list[int]] = [[] for _ in range(num_states)]  # by slot, the tokens so far
        self._slots = [[[-1] * (group.num_blocks * BLOCK_SIZE) for group in groups] for _ in range(LAYERS)]
        self.steps: list[list[int]] = []  # tokens of each chunk of each step
        self.before_step: Callable[[], None] = lambda: None
        self.next_token = next_token
        self.runs_ahead = False  # the model chooses tokens itself where it may
        self.is_sequential = self.is_encoder_decoder = self.is_encoder = self.reads_images = False
        self.labels: tuple[str, ...] = ()
        self.hidden_size = 3
        self.released: list[int] = []  # slots
        self.num_chosen = 0  # steps whose tokens the model has chosen
        self.stalls: Sequence[Stall] = ()  # stalls of each step
        self.deferred: DeferredWork | None = None  # that steps run, as those of native layers do
        self.can_pass, self.pass_token_bytes = False, 8
        self.passes: list[FakePass] = []
        self.before_unit: Callable[[], None] = lambda: None
        self.before_output: Callable[[], None] = lambda: None
        self.seconds_to_experts = 0.0  # until experts that a pass's next unit needs are read
        self.expected_bytes: Callable[[int], float] = lambda num_tokens: 0.0
        self.part_missing = 0.0  # of the experts

    def run(self, chunks: Sequence[SequenceChunk]) -> StepOutput:
        self.before_step()
        if self.deferred is not None:
            self.deferred.run()
        self.steps.append([len(chunk.token_ids) for chunk in chunks])
        for layer in range(LAYERS):
            self.write(layer, chunks)
        if self.states:
            self._advance_states(chunks)
        return self.output(chunks)

    def missing_share(self) -> float:
        return self.part_missing

    def begin_pass(self, steps: Sequence[Sequence[SequenceChunk]]) -> FakePass:
        assert all(one.is_ended for one in self.passes)
        self.passes.append(FakePass(self, steps))
        return self.passes[-1]

    def on_starvation(self, give_back: Callable[[], None]) -> None:
        self.starve = give_back

    def write(self, layer: int, chunks: Sequence[SequenceChunk]) -> None:
        for chunk in chunks:
            for offset, token in enumerate(chunk.token_ids):
                for slots, table in zip(self._slots[layer], chunk.block_tables, strict=True):
                    slots[self._slot(table, chunk.num_cached + offset)] = token

    def output(self, chunks: Sequence[SequenceChunk]) -> StepOutput:
        hidden: list[list[float]] = []
        logits = torch.zeros((sum(chunk.num_logits for chunk in chunks), self._vocab_size))
        row = 0
        for chunk in chunks:
            length = chunk.num_cached + chunk.num_tokens
            tokens = self.tokens(chunk, length)
            self._check_windows(chunk, tokens)
            for end in range(length - chunk.num_logits, length):
                logits[row, self.next_token(tokens[: end + 1])] = 1.0
                row += 1
            hidden += [hidden_state(tokens[: end + 1]) for end in range(length - chunk.num_hidden, length)]
        costs = [self._cost(chunk) for chunk in chunks]
        chosen = [self._chosen(chunk) for chunk in chunks]
        chooses = all(chunk.choice is not None for chunk in chunks)
        chosen_tokens = logits.argmax(-1).tolist() if chooses else None
        self.num_chosen += chooses
        return StepOutput(
            logits, {}, ExpertCost(), costs, chosen, torch.tensor(hidden), self.stalls, tokens=chosen_tokens
        )

    @staticmethod
    def _cost(chunk: SequenceChunk) -> ExpertCost:
        """Each token looks up one expert. For prompt tokens it is missing, takes a second and has a kilobyte."""
        num_missing = chunk.num_tokens if chunk.num_cached < chunk.num_prompt else 0
        return ExpertCost(chunk.num_tokens, num_missing, 1.0 * num_missing, num_missing << 10)

    @staticmethod
    def _chosen(chunk: SequenceChunk) -> RoutedExperts | None:
        """Return the experts of two layers: the first depends on the token, the second on its position."""
        if not chunk.wants_experts:
            return None
        place = chunk.num_cached + chunk.num_tokens - 1
        return np.array([[chunk.token_ids[-1] % 8, -1], [place % 8, (place + 1) % 8]], dtype=np.int16)

    def pause(self) -> None:
        """Do nothing: no step begins before it is asked for."""

    def release(self, slot: int) -> None:
        self.released.append(slot)

    def _advance_states(self, chunks: Sequence[SequenceChunk]) -> None:
        """Continue each sequence from the state in its slot or snapshot, and check that it is the right one."""
        before = [self.states[chunk.slot if chunk.resumes is None else chunk.resumes] for chunk in chunks]
        for chunk, state in zip(chunks, before, strict=True):
            held = self.tokens(chunk, chunk.num_cached)
            assert state == held if chunk.num_cached else chunk.resumes is None
            self.states[chunk.slot] = [*held, *chunk.token_ids]
        for chunk in chunks:
            if chunk.snapshot is not None:
                self.states[chunk.snapshot] = self.states[chunk.slot]

    def _check_windows(self, chunk: SequenceChunk, tokens: Sequence[int]) -> None:
        """Check that groups with a window hold the tokens that the chunk's tokens see."""
        for group, slots, table in zip(self._groups[1:], self._slots[-1][1:], chunk.block_tables[1:], strict=True):
            assert group.window is not None
            oldest = oldest_seen(chunk.num_cached, group.window, group.is_chunked)
            for position in range(max(0, oldest), len(tokens)):
                assert slots[self._slot(table, position)] == tokens[position]

    def tokens(self, chunk: SequenceChunk, count: int, layer: int = LAYERS - 1) -> list[int]:
        """Return the first tokens of a sequence, block by block: those of a long one are read at each step."""
        blocks = chunk.block_tables[0][: -(-count // BLOCK_SIZE)]
        assert all(block >= 0 for block in blocks)
        slots = self._slots[layer][0]
        found = [token for block in blocks for token in slots[block * BLOCK_SIZE : (block + 1) * BLOCK_SIZE]]
        assert len(found) >= count
        return found[:count]

    @staticmethod
    def _slot(table: Sequence[int], position: int) -> int:
        assert table[position // BLOCK_SIZE] >= 0
        return table[position // BLOCK_SIZE] * BLOCK_SIZE + position % BLOCK_SIZE


class FakePass:
    """A pass over all layers. A block or state that is overwritten too soon changes its text or fails it."""

    def __init__(self, model: FakeModel, steps: Sequence[Sequence[SequenceChunk]]):
        self.steps = [list(chunks) for chunks in steps]
        self._model = model
        # The last unit of a layer is that of its experts.
        self._units = [(layer, step) for layer in range(LAYERS) for step in range(len(steps) + 1)]
        self._num_run = 0
        self.is_cancelled = self.is_ended = False
        self.saved_bytes = 1 << 20
        self._outputs: list[StepOutput] = []
        self._begun: dict[int, list[int]] = {}  # states that the sequences begin from, by slot
        self._states: dict[int, list[int]] = {}  # those of the layer that runs
        for chunk in (chunk for step in steps for chunk in step) if model.states else ():
            if chunk.slot not in self._begun:
                before = model.states[chunk.slot if chunk.resumes is None else chunk.resumes]
                self._begun[chunk.slot] = list(before) if chunk.num_cached else []
            else:
                assert chunk.resumes is None

    @property
    def is_finished(self) -> bool:
        return self._num_run == len(self._units)

    @property
    def progress(self) -> float:
        return self._num_run / len(self._units)

    def advance(self, *, wait_seconds: float) -> bool:
        assert not self.is_ended
        assert not self.is_finished
        time.sleep(min(self._model.seconds_to_experts, wait_seconds))
        if self._model.seconds_to_experts > wait_seconds:
            return False
        self._model.before_unit()
        layer, index = self._units[self._num_run]
        if index == 0:
            self._states = {slot: list(state) for slot, state in self._begun.items()}
        if index < len(self.steps):
            self._run(layer, self.steps[index])
        self._num_run += 1
        return True

    def finish(self) -> Iterator[StepOutput]:
        assert self.is_finished
        self.is_ended = True
        for slot, state in self._states.items():
            self._model.states[slot] = state
        for output in self._outputs:
            self._model.before_output()
            yield output

    def cancel(self) -> None:
        assert not self.is_ended
        self.is_cancelled = self.is_ended = True

    def _run(self, layer: int, chunks: Sequence[SequenceChunk]) -> None:
        self._model.write(layer, chunks)
        for chunk in chunks if self._begun else ():
            state = self._states[chunk.slot]
            assert state == self._model.tokens(chunk, chunk.num_cached, layer)
            state += chunk.token_ids
            if chunk.snapshot is not None:
                if layer:
                    assert self._model.states[chunk.snapshot] == state
                self._model.states[chunk.snapshot] = list(state)
        if layer:
            self._outputs.append(self._model.output(chunks))


def decode(token_ids: list[int]) -> str:
    return bytes(token_ids).decode("utf-8", errors="replace")


def detokenizer(prompt_ids: Sequence[int], written: Collection[int] = ()) -> WindowDetokenizer:
    return WindowDetokenizer(decode, (), prompt_ids)


@dataclass
class Rig:
    """An engine over a fake model."""

    num_blocks: int = 64
    max_running: int = 8
    max_batched_tokens: int = 32
    max_queued: int = 100
    eos_token_ids: frozenset[int] = frozenset()
    window_groups: Sequence[BlockGroup] = ()  # besides a group without a window
    num_snapshots: int | None = None  # for a model with states
    vocab_size: int = VOCABULARY
    detokenizer: Callable[[Sequence[int], Collection[int]], Detokenizer] = detokenizer
    defers: bool = True  # events are sent during the next step
    runs_ahead: bool = False
    passes: PassLimits | None = None
    model: FakeModel = field(init=False)
    blocks: BlockManager = field(init=False)
    engine: Engine = field(init=False)
    weights: dict[str, SequenceWeights] = field(default_factory=dict)  # that ``named`` has named, by their pins
    find_weights: Callable[[RequestWeights], SequenceWeights] = field(init=False)  # of others
    grammars: dict[GrammarSpec, Grammar] = field(default_factory=dict)  # of requests that ``submit`` made
    find_grammar: Callable[[GrammarSpec], Grammar] = field(init=False)  # of others

    def __post_init__(self) -> None:
        groups = [BlockGroup(self.num_blocks), *self.window_groups]
        self.model, snapshots = FakeModel(groups, vocab_size=self.vocab_size), None
        if self.num_snapshots is not None:
            self.model = FakeModel(groups, self.max_running + self.num_snapshots, self.vocab_size)
            snapshots = SnapshotPool(range(self.max_running, self.max_running + self.num_snapshots))
        self.blocks = BlockManager(groups, BLOCK_SIZE, snapshots=snapshots)
        self.model.runs_ahead, self.model.can_pass = self.runs_ahead, self.passes is not None
        self.model.deferred = DeferredWork() if self.defers else None
        limits = EngineLimits(
            max_model_len=self.num_blocks * BLOCK_SIZE,
            max_queued=self.max_queued,
            scheduler=SchedulerLimits(self.max_running, self.max_batched_tokens),
            passes=self.passes,
        )
        self.engine = Engine(
            self.model,
            self.blocks,
            limits,
            vocab_size=self.vocab_size,
            eos_token_ids=self.eos_token_ids,
            detokenizer=self.detokenizer,
            weights=lambda names: self.weights.get(names.pin) or self.find_weights(names),
            grammar=lambda spec: self.grammars.get(spec) or self.find_grammar(spec),
            deferred=self.model.deferred,
        )

    def submit(
        self,
        prompt: Sequence[int] | bytes,
        max_tokens: int = 8,
        *,
        priority: int = 0,
        deadline_seconds: float | None = None,
        weights: SequenceWeights | None = None,
        grammar: Grammar | None = None,
        **sampling: Any,
    ) -> TokenStream:
        if grammar is not None:
            self.grammars[grammar.spec], sampling["grammar"] = grammar, grammar.spec
        params = SamplingParams(max_tokens, temperature=0.0, **sampling)
        return self.engine.submit(
            GenerationRequest("test", tuple(prompt), params, priority, deadline_seconds, weights=self.named(weights))
        )

    def named(self, weights: SequenceWeights | None) -> RequestWeights | None:
        """Return names by which the engine finds weights."""
        if weights is None:
            return None
        names = RequestWeights(str(id(weights)))
        self.weights[names.pin] = weights
        return names


async def collect(stream: TokenStream) -> str:
    return "".join([event.text async for event in stream])


async def collect_together(rig: Rig, *requests: tuple[bytes, int], weights: SequenceWeights | None = None) -> list[str]:
    """Return the texts of requests (prompt, max_tokens) that are all submitted before the first step."""
    are_there = threading.Event()
    rig.model.before_step = lambda: None if are_there.wait(30) else sys.exit("the requests did not arrive")
    texts = [collect(rig.submit(prompt, max_tokens, weights=weights)) for prompt, max_tokens in requests]
    are_there.set()
    return await asyncio.gather(*texts)


def run(rig: Rig, scenario: Callable[[], Any]) -> Any:
    """Run a coroutine function while the engine runs, then check that no block is in use."""

    async def body() -> Any:
        rig.engine.start()
        try:
            return await asyncio.wait_for(scenario(), timeout=60)
        finally:
            await asyncio.to_thread(rig.engine.stop)

    result = asyncio.run(body())
    rig.blocks.check_integrity([])
    return result
