"""An ingress over two replicas of the bundled model in this process, without Ray."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest

from server.cluster import frontend as frontend_module
from server.cluster import replica as replica_module
from server.cluster.frontend import Frontend
from server.cluster.kept_counts import Counts, KeptCounts
from server.cluster.replica import Replica
from server.cluster.shared_fleet import SharedFleet
from server.cluster.signatures import RoutedRequest
from server.cluster.wire import Answer, Batch, Outcome, SharedCall, Submission, WeightChange, outcome_of
from server.engine.interface import (
    AccessPolicy,
    EngineUnavailableError,
    ForbiddenExperts,
    GenerationRequest,
    SamplingParams,
    Timeline,
    TokenStream,
)
from server.lifecycle.application import application_of
from server.loading.bundled_weights import ADAPTERS
from server.loading.load import load_server
from server.model.checkpoint.locate import BUNDLED_NAME as MODEL
from server.settings import ServeSettings, load_settings

pytestmark = pytest.mark.slow

STORY = {"model": MODEL, "prompt": "Once upon a time", "temperature": 0, "max_tokens": 8}
SETTINGS = {"host_expert_memory": "50%", "threads": "1", "dtype": "float32", "adapters_dir": str(ADAPTERS)}


class Direct:
    """The way to replicas in this process; each request goes to the next one."""

    def __init__(self, replicas: list[Replica], loop: asyncio.AbstractEventLoop):
        self._replicas, self._loop = replicas, loop
        self.num_sent = 0
        self.sessions: list[bytes | None] = []  # of all requests
        self.num_shared = 0  # events
        self._counts = KeptCounts()

    async def stream(self, submission: Submission) -> AsyncGenerator[Answer, None]:
        self.num_sent += 1
        self.sessions.append(submission.routed.session)
        answers = self._replicas[self.num_sent % 2].generate(submission)
        try:
            async for answer in answers:
                yield answer
        finally:
            await answers.aclose()

    async def share(self, call: SharedCall) -> AsyncGenerator[list[Batch], None]:
        [replica] = [each for each in self._replicas if each.name == call.replica]
        items = replica.share(call)
        try:
            async for batches in items:
                self.num_shared += sum(len(batch.events) for batch in batches)
                yield batches
        finally:
            await items.aclose()

    async def ask(self, method: str, *arguments: Any) -> Any:
        return await _called(self._replicas[0], method, *arguments)

    async def ask_all(self, method: str, *arguments: Any, seconds: float = 60) -> list[Any]:
        del seconds
        return [await _called(replica, method, *arguments) for replica in self._replicas]

    def call_all(self, method: str, *arguments: Any) -> list[Outcome]:
        calling = asyncio.run_coroutine_threadsafe(self.ask_all(method, *arguments), self._loop)
        return [outcome_of(each) for each in calling.result()]

    def exchange_counts(self, counts: Counts) -> Counts:
        return self._counts.exchange(counts)


async def _called(replica: Replica, method: str, *arguments: Any) -> Any:
    result = getattr(replica, method)(*arguments)
    return await result if isinstance(result, Awaitable) else result


@dataclass
class Running:
    """An ingress with its replicas, on an event loop that tests use."""

    settings: ServeSettings
    replicas: list[Replica]
    runner: asyncio.Runner
    frontend: Frontend | None = None
    ways: Direct | None = None

    def ask(self, work: Callable[[httpx.AsyncClient], Awaitable[Any]]) -> Any:
        """Let a client of the ingress work."""

        async def run() -> Any:
            assert self.frontend is not None
            transport = httpx.ASGITransport(application_of(self.frontend.service), client=("127.0.0.1", 1))
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
                return await work(client)

        return self.runner.run(run())

    def post(self, path: str, body: dict[str, Any]) -> httpx.Response:
        return self.ask(lambda client: client.post(path, json=body))


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    settings = load_settings(SETTINGS, {}, None)
    with asyncio.Runner() as runner:
        replicas = [Replica(load_server(None, settings), name) for name in ("a", "b")]
        found = Running(settings, replicas, runner)

        async def connect() -> Frontend:
            found.ways = ways = Direct(replicas, asyncio.get_running_loop())
            frontend = Frontend(
                load_settings({"adapters_dir": str(ADAPTERS)}, {}, None), "127.0.0.1", ways, SharedFleet()
            )
            await frontend.connect()
            return frontend

        found.frontend = runner.run(connect())
        yield found
        for replica in replicas:
            runner.run(replica.close())


def test_both_replicas_give_the_same_text(running: Running) -> None:
    choices = [running.post("/v1/completions", STORY).json()["choices"] for _ in range(2)]
    assert choices[0] == choices[1]
    assert choices[0][0]["text"]


def test_texts_of_requests_whose_events_come_together_are_those_of_requests_alone(running: Running) -> None:
    assert running.ways is not None
    asked = [{**STORY, "prompt": f"Story {number}:", "max_tokens": 80, "ignore_eos": True} for number in range(8)]

    async def ask_all(client: httpx.AsyncClient) -> list[httpx.Response]:
        return await asyncio.gather(*(client.post("/v1/completions", json=each) for each in asked))

    alone = [running.post("/v1/completions", each).json() for each in asked]
    before = running.ways.num_shared
    together = [reply.json() for reply in running.ask(ask_all)]
    assert running.ways.num_shared > before
    assert [each["choices"] for each in together] == [each["choices"] for each in alone]
    assert [each["usage"]["completion_tokens"] for each in together] == [80] * 8


def test_requests_of_the_conversation_that_a_header_names_have_one_session(running: Running) -> None:
    begin = len(running.ways.sessions)

    async def ask(client: httpx.AsyncClient) -> None:
        for named in ({"X-Session-Id": "a"}, {"x-session-id": "a"}, {"X-Session-Id": "b"}, {}):
            reply = await client.post("/v1/completions", json={**STORY, "max_tokens": 1}, headers=named)
            assert reply.is_success

    running.ask(ask)
    first, same, other, none = running.ways.sessions[begin:]
    assert first == same
    assert first != other
    assert none is None


def test_a_client_that_leaves_takes_no_event_of_others(running: Running) -> None:
    asked = [{**STORY, "prompt": f"Story {number}:", "max_tokens": 80, "ignore_eos": True} for number in range(8)]
    alone = [running.post("/v1/completions", each).json()["choices"][0]["text"] for each in asked]

    async def read(client: httpx.AsyncClient, number: int) -> str:
        reading = asyncio.create_task(client.post("/v1/completions", json={**asked[number], "stream": True}))
        if number % 4 == 0:
            await asyncio.sleep(0.05)
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            return ""
        events = [line for line in (await reading).text.splitlines() if line.startswith("data: {")]
        return "".join(json.loads(line.removeprefix("data: "))["choices"][0]["text"] for line in events)

    async def read_all(client: httpx.AsyncClient) -> list[str]:
        return await asyncio.gather(*(read(client, number) for number in range(8)))

    texts = running.ask(read_all)
    assert texts == ["" if number % 4 == 0 else text for number, text in enumerate(alone)]
    assert [replica.statistics()["num_requests"] for replica in running.replicas] == [0, 0]


def test_a_second_call_of_an_ingress_takes_the_events_that_the_first_one_did(running: Running) -> None:
    replica, call = running.replicas[0], SharedCall("me", "a")

    async def read() -> list[Batch]:
        first, second = replica.share(call), replica.share(call)
        await anext(first)
        await anext(second)
        assert [batches async for batches in first] == []
        request = GenerationRequest("r-4", (5, 6, 7), SamplingParams(200, ignore_eos=True))
        async for _ in replica.generate(Submission("me", request, RoutedRequest(3), 7)):
            pass
        batches = await anext(second)
        await second.aclose()
        return batches

    assert {batch.number for batch in running.runner.run(read())} == {7}


def test_a_call_for_another_replica_gets_nothing(running: Running) -> None:
    async def read() -> list[object]:
        return [batches async for batches in running.replicas[0].share(SharedCall("me", "b"))]

    assert running.runner.run(read()) == []


def test_a_refusal_of_the_replica_is_the_status_of_a_stream(running: Running) -> None:
    reply = running.post("/v1/completions", {**STORY, "stream": True, "logit_bias": {"99999999": 1}})
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == "logit_bias"


def test_a_grammar_is_followed_at_the_replica(running: Running) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema, "strict": True}}
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], "response_format": form}
    text = running.post("/v1/chat/completions", {**body, "max_tokens": 64, "temperature": 0}).json()
    assert text["choices"][0]["message"]["content"].replace(" ", "").startswith('{"a":')


def test_the_prefix_caches_of_all_replicas_are_reset(running: Running) -> None:
    def num_cached() -> int:
        body = {"prompt": "Once upon a time there was a queen. " * 8, "max_tokens": 1}
        usage = running.post("/v1/completions", body).json()["usage"]
        return int(usage["prompt_tokens_details"]["cached_tokens"])

    assert [num_cached() for _ in range(4)][-1] > 0
    assert running.post("/reset_prefix_cache", {}).is_success
    assert num_cached() == 0


def test_an_embedding_comes_from_a_replica(running: Running) -> None:
    reply = running.post("/v1/embeddings", {"model": MODEL, "input": ["apple pie", "a contract"]}).json()
    assert [len(each["embedding"]) for each in reply["data"]] == [len(reply["data"][0]["embedding"])] * 2


def test_an_adapter_is_served_by_all_replicas_and_unloaded_from_all(running: Running) -> None:
    assert running.post("/v1/load_lora_adapter", {"lora_name": "pies", "lora_path": "recipes"}).is_success
    replies = [running.post("/v1/completions", {**STORY, "model": "pies"}) for _ in range(2)]
    assert replies[0].json()["choices"] == replies[1].json()["choices"]
    assert running.post("/v1/unload_lora_adapter", {"lora_name": "pies"}).is_success
    assert running.post("/v1/completions", {**STORY, "model": "pies"}).status_code == 404


def test_an_adapter_that_one_replica_can_not_load_is_on_none(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise EngineUnavailableError("no room here")

    monkeypatch.setattr(running.replicas[1]._changes, "make", refuse)
    reply = running.post("/v1/load_lora_adapter", {"lora_name": "cakes", "lora_path": "recipes"})
    assert reply.status_code == 503
    assert [replica._changes.names() for replica in running.replicas] == [frozenset(), frozenset()]


def test_a_variant_is_served_by_all_replicas(running: Running) -> None:
    assert running.post("/v1/experts/load", {"name": "law", "path": "legal"}).is_success
    replies = [running.post("/v1/completions", {**STORY, "model": f"{MODEL}:law"}) for _ in range(2)]
    assert replies[0].json()["choices"] == replies[1].json()["choices"]
    deleted = running.ask(lambda client: client.delete("/v1/experts/variants/law"))
    assert deleted.is_success


def change_weights(running: Running, replicas: list[Replica], change: WeightChange) -> None:
    for replica in replicas:
        running.runner.run(replica.change_weights(change))
        replica.confirm_change(change)


def test_a_new_replica_takes_over_weights_and_pins(running: Running) -> None:
    first, second = running.replicas
    change_weights(running, [first], WeightChange("x", 1e12, "adapters", "load", ("mine", "recipes")))
    running.runner.run(first.call("experts", "change", "pin", [(0, 1)]))
    holdings = running.runner.run(first.holdings())
    assert (0, 1) in holdings.pinned
    running.runner.run(second.take_over(holdings))
    assert second._changes.served().adapters["mine"].folder == first._changes.served().adapters["mine"].folder
    assert running.runner.run(second.holdings()).pinned == holdings.pinned
    change_weights(running, running.replicas, WeightChange("y", 2e12, "adapters", "unload", ("mine",)))
    for replica in running.replicas:
        running.runner.run(replica.call("experts", "change", "unpin", [(0, 1)]))


def test_a_replica_that_takes_over_waits_for_weights_that_another_call_loads(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = running.replicas
    adapters = second._loaded.adapters
    assert adapters is not None
    load_own = adapters.registry.load_own

    def load_slowly(name: str, folder: str) -> None:
        time.sleep(0.2)
        load_own(name, folder)

    monkeypatch.setattr(adapters.registry, "load_own", load_slowly)
    change_weights(running, [first], WeightChange("x", 2.1e12, "adapters", "load", ("mine", "recipes")))
    holdings = running.runner.run(first.holdings())

    async def take_over() -> bool:
        await second.take_over(holdings)
        return "mine" in second._changes.names()

    async def take_over_twice() -> list[bool]:
        return [*await asyncio.gather(take_over(), take_over())]

    assert running.runner.run(take_over_twice()) == [True, True]
    change_weights(running, running.replicas, WeightChange("y", 2.2e12, "adapters", "unload", ("mine",)))


def test_a_key_that_is_added_to_the_file_is_known_soon(
    running: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frontend_module, "FILES_SECONDS", 0.01)
    file = tmp_path / "keys"
    file.write_text("old-key-of-many-letters\n")
    file.chmod(0o600)

    async def ask() -> None:
        ways = Direct(running.replicas, asyncio.get_running_loop())
        frontend = Frontend(load_settings({"api_key_file": str(file)}, {}, None), "127.0.0.1", ways, SharedFleet())
        await frontend.connect()
        try:
            before = frontend.service.keys
            file.write_text("old-key-of-many-letters\nnew-key-of-many-letters\n")
            async with asyncio.timeout(10):
                while frontend.service.keys is before:
                    await asyncio.sleep(0.01)
            assert len(frontend.service.keys.users) == 2
        finally:
            await frontend._close()

    running.runner.run(ask())


def test_experts_that_a_policy_forbids_are_used_by_no_replica(running: Running) -> None:
    assert running.frontend is not None
    model = running.frontend.service.base_model
    policy = AccessPolicy("strict", forbidden_experts=ForbiddenExperts(frozenset({0, 1, 2})))
    assert model.directory is not None
    running.runner.run(asyncio.to_thread(model.directory.prepare, [policy]))
    weights = model.directory.resolve(None, policy=policy)
    assert weights is not None

    async def experts() -> set[int]:
        request = GenerationRequest("r-0", (5, 6, 7), SamplingParams(6), returns_experts=True, weights=weights)
        events = [event async for event in model.engine.submit(request)]
        return {int(expert) for event in events if event.experts is not None for expert in event.experts.flat}

    assert not {0, 1, 2} & running.runner.run(experts())


def test_streams_of_an_ingress_that_is_gone_end(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica_module, "SENDER_SECONDS", 0.0)
    monkeypatch.setattr(replica_module, "WATCH_SECONDS", 0.01)

    async def read() -> Answer:
        replica = running.replicas[0]
        if replica._watch is not None:
            replica._watch.cancel()
            await asyncio.gather(replica._watch, return_exceptions=True)
        request = GenerationRequest("r-1", (5, 6, 7), SamplingParams(2000, ignore_eos=True))
        answers = replica.generate(Submission("gone", request, RoutedRequest(3), 1))
        async for answer in answers:
            last = answer
        return last

    answer = running.runner.run(read())
    assert isinstance(answer.error, EngineUnavailableError)


def test_the_first_item_tells_the_first_token_too(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica_module, "TAKEN_SECONDS", 60.0)

    async def read() -> list[Answer]:
        request = GenerationRequest("r-5", (5, 6, 7), SamplingParams(50, ignore_eos=True))
        answers = running.replicas[0].generate(Submission("me", request, RoutedRequest(3), 1))
        return [answer async for answer in answers]

    found = running.runner.run(read())
    assert found[0].events
    assert found[-1].start + len(found[-1].events) == 50


def test_a_request_whose_first_token_takes_long_is_told_to_be_taken(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    def submit(request: GenerationRequest) -> TokenStream:
        return TokenStream(request, asyncio.get_running_loop(), Timeline(0.0))  # of which no token comes

    monkeypatch.setattr(replica_module, "TAKEN_SECONDS", 0.0)
    monkeypatch.setattr(running.replicas[0], "_engine", SimpleNamespace(submit=submit))

    async def read() -> Answer:
        request = GenerationRequest("r-6", (5, 6, 7), SamplingParams(1))
        answers = running.replicas[0].generate(Submission("me", request, RoutedRequest(3), 1))
        first = await anext(answers)
        await answers.aclose()
        return first

    assert running.runner.run(read()).events == []


def test_the_end_of_a_stream_tells_the_signature_of_its_tokens(running: Running) -> None:
    async def read() -> Answer:
        request = GenerationRequest("r-2", (5, 6, 7), SamplingParams(4, ignore_eos=True))
        answers = running.replicas[0].generate(Submission("me", request, RoutedRequest(3, [b"1"]), 1))
        found = [answer async for answer in answers]
        assert all(event.experts is None for answer in found for event in answer.events)
        return found[-1]

    end = running.runner.run(read()).end
    assert end is not None
    assert end.signature is not None
    assert end.state.resident is not None
    assert end.signature.shares.shape == end.state.resident.shape
    assert end.signature.shares.sum(axis=1) == pytest.approx(1.0)


def test_a_replica_with_all_experts_tells_no_signature(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    replica = running.replicas[0]
    monkeypatch.setattr(replica._loaded.experts, "residency", lambda: np.ones(replica._loaded.experts.shape))

    async def read() -> Answer:
        request = GenerationRequest("r-3", (5, 6, 7), SamplingParams(4, ignore_eos=True))
        return [answer async for answer in replica.generate(Submission("me", request, RoutedRequest(3), 1))][-1]

    end = running.runner.run(read()).end
    assert end is not None
    assert end.signature is None


def test_a_replica_that_missed_a_change_is_told_by_the_ingress(running: Running) -> None:
    first, second = running.replicas
    assert running.frontend is not None
    change = WeightChange("z", 3e12, "adapters", "load", ("missed", "recipes"))
    running.runner.run(first.change_weights(change))
    running.runner.run(running.frontend._refresh())
    assert "missed" not in second._changes.served().adapters  # it may still be undone
    first.confirm_change(change)
    running.runner.run(running.frontend._refresh())
    assert "missed" in second._changes.served().adapters
    running.runner.run(running.frontend._refresh())
    assert running.post("/v1/completions", {**STORY, "model": "missed"}).is_success
