"""Requests and events that go through pickle, as between processes: the bundled model answers them all the same."""

from __future__ import annotations

import asyncio
import pickle
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from server.engine.interface import (
    AccessPolicy,
    AccessRefusedError,
    DeadlineExceededError,
    EngineError,
    ForbiddenExperts,
    GenerationRequest,
    GrammarSpec,
    RequestRefusedError,
    RequestWeights,
    SamplingParams,
    SinkItem,
    Timeline,
    TokenEvent,
)
from server.loading.bundled_weights import with_bundled_adapters
from server.loading.load import LoadedServer, load_server
from server.setting_values import NamedPath
from server.settings import ServeSettings

VARIANT = Path("server/demo/variants/legal")
PROMPT = (5, 17, 300, 42, 8, 99, 1200, 64)
GRAMMAR = GrammarSpec("json_schema", '{"type": "object", "properties": {"a": {"enum": [1, 22]}}, "required": ["a"]}')
CAREFUL = AccessPolicy("careful", forbidden_experts=ForbiddenExperts(frozenset({1})))
GREEDY = SamplingParams(12, temperature=0.0, logprobs=2)

Weights = Callable[[LoadedServer], RequestWeights | None]


@pytest.fixture(scope="module")
def loaded() -> Iterator[LoadedServer]:
    variant = (NamedPath("legal", str(VARIANT)),)
    settings = with_bundled_adapters(None, ServeSettings(dtype="float32", threads=1, variant=variant))
    server = load_server(None, settings)
    server.directory.prepare([CAREFUL])
    yield server
    server.close()


@dataclass(eq=False)
class PicklingSink:
    """Keeps what a process at the other end of a pipe would read; its own outlet."""

    timeline: Timeline
    is_cancelled: bool = False
    items: list[TokenEvent | EngineError] = field(default_factory=list)
    times: list[Timeline] = field(default_factory=list)
    has_ended: asyncio.Event = field(default_factory=asyncio.Event)
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)

    @property
    def outlet(self) -> PicklingSink:
        return self

    def cancel(self) -> None:
        self.is_cancelled = True

    def send(self, items: Sequence[SinkItem]) -> None:
        for _, item in items:
            received, timeline = pickle.loads(pickle.dumps((item, self.timeline)))
            self.items.append(received)
            self.times.append(timeline)
            if isinstance(received, EngineError) or received.finish_reason is not None:
                self.loop.call_soon_threadsafe(self.has_ended.set)


@dataclass(eq=False)
class HeldSink(PicklingSink):
    """Keeps its request unfinished until it is released: the engine's thread waits in the first ``send``."""

    released: threading.Event = field(default_factory=threading.Event)

    def send(self, items: Sequence[SinkItem]) -> None:
        self.released.wait(60)
        super().send(items)


async def answers(loaded: LoadedServer, request: GenerationRequest) -> tuple[list[TokenEvent], PicklingSink]:
    """Return the events of a request in this process, and what another process gets for its copy."""
    here = [event async for event in loaded.engine.submit(request)]
    sink = PicklingSink(Timeline(loaded.engine.clock()))
    loaded.engine.accept(pickle.loads(pickle.dumps(request)), sink)
    await asyncio.wait_for(sink.has_ended.wait(), 60)
    return here, sink


def told(events: Sequence[TokenEvent | EngineError]) -> list[object]:
    """Return all that does not depend on what the caches held."""
    found: list[object] = []
    for event in events:
        assert isinstance(event, TokenEvent)
        vector = None if event.embedding is None else event.embedding.tolist()
        experts = None if event.experts is None else event.experts.tolist()
        logprobs = [(each.token_id, pytest.approx(each.logprob, abs=1e-5)) for each in event.logprobs]
        found.append((event.text, event.token_id, event.finish_reason, logprobs, vector, experts, event.adapters))
    return found


KINDS: dict[str, tuple[SamplingParams, Weights, dict[str, object]]] = {
    "text": (
        SamplingParams(
            12,
            top_k=20,
            presence_penalty=0.5,
            logit_bias=((7, 1.0),),
            bad_words=frozenset({(8, 9)}),
            seed=3,
            stop=("zzz",),
            stop_token_ids=frozenset({2}),
        ),
        lambda _: None,
        {"priority": 1, "deadline_seconds": 60.0, "cache_salt": b"mine"},
    ),
    "grammar": (SamplingParams(60, temperature=0.0, grammar=GRAMMAR), lambda _: None, {}),
    "adapters": (
        GREEDY,
        lambda server: server.directory.resolve("legal", [("python", 0.5)]),
        {"returns_adapters": True},
    ),
    "mixture": (GREEDY, lambda server: server.directory.resolve("mixture"), {"returns_adapters": True}),
    "variant": (GREEDY, lambda server: server.directory.resolve(f"{server.name}:legal"), {"returns_experts": True}),
    "policy": (
        GREEDY,
        lambda server: server.directory.resolve(None, (), CAREFUL),
        {"returns_experts": True},
    ),
    "embedding": (SamplingParams(0), lambda _: None, {"pooling": "mean"}),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_of_a_request_has_the_same_answer(loaded: LoadedServer, kind: str) -> None:
    sampling, weights, options = KINDS[kind]
    request = GenerationRequest("test", PROMPT, sampling, weights=weights(loaded), **options)  # type: ignore[arg-type]
    here, sink = asyncio.run(answers(loaded, request))
    assert told(sink.items) == told(here)
    assert sink.times[-1].ended_at is not None
    last = sink.items[-1]
    assert isinstance(last, TokenEvent)
    assert last.expert_usage is not None


@pytest.mark.slow
def test_copies_of_choices_run_with_one_version_while_their_adapter_is_replaced(loaded: LoadedServer) -> None:
    weights = loaded.directory.resolve("legal")
    request = pickle.dumps(GenerationRequest("test", PROMPT, SamplingParams(4, ignore_eos=True), weights=weights))

    async def scenario() -> None:
        first, second = (sink(Timeline(loaded.engine.clock())) for sink in (HeldSink, PicklingSink))
        loaded.engine.accept(pickle.loads(request), first)
        try:
            registry = loaded.adapters.registry  # type: ignore[union-attr]
            await asyncio.to_thread(registry.load, "legal", "legal", replace=True)
            loaded.engine.accept(pickle.loads(request), second)
            assert [version.num_total for version, _ in registry.versions() if version.name == "legal"] == [0]
        finally:
            first.released.set()
            await asyncio.wait_for(first.has_ended.wait(), 60)
        await asyncio.wait_for(second.has_ended.wait(), 60)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "error",
    [
        RequestRefusedError("no", "model"),
        AccessRefusedError("never", "adapters", "adapter"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_keep_what_they_say(error: RequestRefusedError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), vars(copy)) == (type(error), str(error), vars(error))


@pytest.mark.slow
def test_a_copy_that_is_too_late_ends_with_the_error(loaded: LoadedServer) -> None:
    request = GenerationRequest("test", PROMPT, GREEDY, deadline_seconds=5.0, spent_seconds=6.0)

    async def scenario() -> list[TokenEvent | EngineError]:
        sink = PicklingSink(Timeline(loaded.engine.clock()))
        loaded.engine.accept(pickle.loads(pickle.dumps(request)), sink)
        await asyncio.wait_for(sink.has_ended.wait(), 60)
        return sink.items

    (error,) = asyncio.run(scenario())
    assert isinstance(error, DeadlineExceededError)
    assert str(error) == "the request was not done within 5 seconds"
