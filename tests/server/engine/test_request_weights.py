"""The engine over requests whose weights are loaded while they wait."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest

from server.engine.block_salt import block_salt
from server.engine.interface import (
    AdapterShares,
    ChoiceByToken,
    ExpertUsage,
    GenerationFailedError,
    GenerationRequest,
    QueueFullError,
    SamplingParams,
    Timeline,
)
from server.model.chunk_weights import ChosenAdapters, ChunkWeights, WeightedAdapter
from server.model.lora_adapter import LoraAdapter
from server.model.step import SequenceChunk, StepOutput
from tests.server.engine.fakes import Rig, collect, collect_together, continuation, run


@dataclass
class FakeWeights:
    """Weights that are in memory once ``is_loaded``; counts the calls."""

    is_loaded: bool = True
    error: Exception | None = None
    cache_salt: bytes = b""
    versions: tuple[str, ...] = ()
    chunk_weights: ChunkWeights = field(default_factory=ChunkWeights)
    by_token: ChoiceByToken | None = None
    num_begun: int = 0
    num_held: int = 0
    num_attempts: int = 0
    most_held: int = 0
    num_tokens: int = 0
    ended: list[tuple[ExpertUsage, Timeline, int]] = field(default_factory=list)

    def begin(self) -> None:
        self.num_begun += 1

    def end(self) -> None:
        self.num_begun -= 1

    def acquire(self) -> bool:
        self.num_attempts += 1
        if self.error is not None:
            raise self.error
        self.num_held += self.is_loaded
        self.most_held = max(self.most_held, self.num_held)
        return self.is_loaded

    def release(self) -> None:
        self.num_held -= 1
        assert self.num_held >= 0

    def note_tokens(self, num_tokens: int, routed: ChosenAdapters | None) -> None:
        self.num_tokens += num_tokens

    def note_request(self, usage: ExpertUsage, timeline: Timeline, num_generated: int) -> None:
        assert self.num_begun  # before it ends
        self.ended.append((usage, timeline, num_generated))


async def until_attempted(weights: FakeWeights) -> None:
    while not weights.num_attempts:
        await asyncio.sleep(0.001)


def test_a_request_that_the_full_queue_refuses_ends_its_use_of_weights() -> None:
    rig, gate, weights = Rig(max_queued=2, max_running=1), threading.Event(), FakeWeights()
    rig.model.before_step = lambda: gate.wait(30)

    async def scenario() -> None:
        streams = [rig.submit(b"q", 2)]
        with pytest.raises(QueueFullError):
            streams.extend(rig.submit(b"q", 2, weights=weights) for _ in range(3))
        assert weights.num_begun == len(streams) - 1
        gate.set()
        for stream in streams:
            await collect(stream)

    run(rig, scenario)
    assert weights.num_begun == 0


def test_a_sequence_holds_its_weights_while_it_runs_and_no_longer() -> None:
    rig, weights = Rig(), FakeWeights()

    async def scenario() -> str:
        return await collect(rig.submit(b"abc", 5, weights=weights))

    assert run(rig, scenario) == continuation(b"abc", 5)
    assert (weights.num_begun, weights.num_held, weights.most_held) == (0, 0, 1)
    assert weights.num_tokens == len(b"abc") + 4  # those of the prompt, and all but the last of the text


def test_each_sequence_that_ends_is_noted_once() -> None:
    rig, weights = Rig(), FakeWeights()

    async def scenario() -> None:
        await collect(rig.submit(b"abc", 5, weights=weights))

    run(rig, scenario)
    ((_, timeline, num_generated),) = weights.ended
    assert (num_generated, timeline.ended_at is not None) == (5, True)


def test_a_request_whose_weights_are_being_loaded_lets_others_pass() -> None:
    rig, weights = Rig(max_running=1), FakeWeights(is_loaded=False)

    async def scenario() -> list[str]:
        first = asyncio.ensure_future(collect(rig.submit(b"slow", 3, weights=weights)))
        texts = [await collect(rig.submit(b"quick", 3))]
        assert not first.done()
        weights.is_loaded = True
        rig.engine.wake()
        return [*texts, await first]

    assert run(rig, scenario) == [continuation(b"quick", 3), continuation(b"slow", 3)]


def test_the_engine_sleeps_while_all_requests_wait_for_weights_and_wakes_when_one_is_loaded() -> None:
    rig, weights = Rig(), FakeWeights(is_loaded=False)

    async def scenario() -> tuple[int, str]:
        text = asyncio.ensure_future(collect(rig.submit(b"abc", 1, weights=weights)))
        await until_attempted(weights)
        await asyncio.sleep(0.25)
        num_attempts = weights.num_attempts
        weights.is_loaded = True
        rig.engine.wake()
        return num_attempts, await text

    num_attempts, text = run(rig, scenario)
    assert text == continuation(b"abc", 1)
    assert num_attempts < 10


def test_a_failed_load_ends_its_request_and_the_next_one_tries_again() -> None:
    rig = Rig()
    weights = FakeWeights(error=GenerationFailedError("the adapter can't be read"))

    async def scenario() -> str:
        with pytest.raises(GenerationFailedError, match="the adapter can't be read"):
            await collect(rig.submit(b"abc", 5, weights=weights))
        assert weights.num_begun == 0
        weights.error = None
        return await collect(rig.submit(b"abc", 5, weights=weights))

    assert run(rig, scenario) == continuation(b"abc", 5)


def test_a_request_cancelled_while_its_weights_are_loaded_leaves_the_queue() -> None:
    rig, weights = Rig(), FakeWeights(is_loaded=False)

    async def scenario() -> None:
        stream = rig.submit(b"abc", 5, weights=weights)
        await until_attempted(weights)
        stream.cancel()
        while weights.num_begun:
            await asyncio.sleep(0.001)

    run(rig, scenario)
    assert weights.num_held == 0


def test_preempted_sequences_release_their_weights_and_acquire_them_again() -> None:
    rig, weights = Rig(num_blocks=10), FakeWeights()

    async def scenario() -> list[str]:
        return await collect_together(rig, *[(bytes([65 + i] * 8), 24) for i in range(5)], weights=weights)

    assert run(rig, scenario) == [continuation(bytes([65 + i] * 8), 24) for i in range(5)]
    assert rig.engine.statistics.preemptions > 0
    assert (weights.num_begun, weights.num_held) == (0, 0)


def test_a_request_without_a_free_slot_does_not_keep_its_weights() -> None:
    rig, weights = Rig(max_running=1), FakeWeights()

    async def scenario() -> list[str]:
        return await collect_together(rig, (b"ab", 6), (b"cd", 6), weights=weights)

    assert run(rig, scenario) == [continuation(b"ab", 6), continuation(b"cd", 6)]
    assert weights.most_held == 2  # the second is tried beside the running one, and released
    assert weights.num_held == 0


def test_prefixes_of_other_weights_share_no_blocks() -> None:
    rig = Rig()
    salted = FakeWeights(cache_salt=b"adapter 1")

    async def scenario() -> None:
        await collect(rig.submit(b"x" * 40, 2))
        await collect(rig.submit(b"x" * 40, 2, weights=salted))

    run(rig, scenario)
    assert rig.engine.statistics.prefix_cache_hits == 0


def test_prefixes_of_unloaded_weights_are_discarded_while_nothing_runs() -> None:
    rig, prompt = Rig(), (120,) * 40
    weights = FakeWeights(cache_salt=b"adapter 1", versions=("adapter 1",))

    def num_cached() -> int:
        return rig.blocks.num_reusable(rig.blocks.new_blocks(block_salt(request, weights)), prompt)

    request = GenerationRequest("test", prompt, SamplingParams(2), weights=rig.named(weights))

    async def scenario() -> None:
        await collect(rig.engine.submit(request))
        assert num_cached() > 0
        rig.engine.discard_prefixes("adapter 1")
        while num_cached():
            await asyncio.sleep(0.001)

    run(rig, scenario)


def test_a_reset_prefix_cache_holds_nothing_for_later_requests() -> None:
    rig, prompt = Rig(), b"x" * 40

    async def scenario() -> list[int]:
        hits = []
        for resets in (False, False, True):
            if resets:
                rig.engine.reset_prefix_cache()
            await collect(rig.submit(prompt, 2))
            hits.append(rig.engine.statistics.prefix_cache_hits)
        return hits

    first, second, third = run(rig, scenario)
    assert first == 0 < second == third
    rig.blocks.check_integrity([])


def test_events_have_the_shares_of_adapters_chosen_for_all_tokens_since_the_last_one() -> None:
    rig, choice = Rig(max_batched_tokens=2), ChoiceByToken(("law", "code"))
    weights, compute = FakeWeights(by_token=choice), rig.model.run

    def route(chunks: Sequence[SequenceChunk]) -> StepOutput:
        routed = [ChosenAdapters({"law": 0.25 * chunk.num_tokens}, chunk.num_tokens) for chunk in chunks]
        return replace(compute(chunks), routed=routed)

    rig.model.run = route  # type: ignore[method-assign]

    async def scenario() -> list[AdapterShares | None]:
        return [event.adapter_shares async for event in rig.submit(b"abc", 2, weights=weights)]

    # The prompt goes in two steps before the first token.
    assert run(rig, scenario) == [AdapterShares(choice, 3, {"law": 0.75}), AdapterShares(choice, 1, {"law": 0.25})]


def test_events_have_the_factors_of_adapters_if_requested() -> None:
    adapter = LoraAdapter("law", {}, {})
    weights = FakeWeights(chunk_weights=ChunkWeights(adapters=(WeightedAdapter(adapter, 0.5),)))

    async def factors(weights: FakeWeights | None, *, is_wanted: bool) -> list[object]:
        sampling = SamplingParams(3, temperature=0.0)
        request = GenerationRequest("test", (1, 2), sampling, weights=rig.named(weights), returns_adapters=is_wanted)
        return [event.adapters async for event in rig.engine.submit(request)]

    async def scenario() -> list[list[object]]:
        asked = ((weights, True), (None, True), (weights, False))
        return [await factors(each, is_wanted=is_wanted) for each, is_wanted in asked]

    rig = Rig()
    assert run(rig, scenario) == [[{"law": 0.5}] * 3, [{}] * 3, [None] * 3]
