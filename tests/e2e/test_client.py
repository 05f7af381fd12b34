"""The client's library and programs against a real server of the bundled model."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from client import AsyncClient, BadRequestError, Client, NotFoundError
from tests.e2e.processes import Server, run_command

NUM_LAYERS, NUM_EXPERTS = 6, 16


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with Client(server.url) as client:
        yield client


def test_a_reply_has_its_experts_and_their_cost(client: Client) -> None:
    with client.stream("Once upon a time", max_tokens=8, temperature=0, return_experts=True) as stream:
        text = "".join(token.text for token in stream)
    reply = stream.result
    assert text == reply.text == client.complete("Once upon a time", max_tokens=8, temperature=0).text
    assert reply.usage is not None
    assert reply.usage.greenroom is not None
    assert 0 < reply.usage.greenroom.expert_misses <= reply.usage.greenroom.expert_requests
    experts = reply.choices[0].experts
    assert len(experts) == reply.usage.completion_tokens == 8
    assert all(len(token) == NUM_LAYERS for token in experts)
    assert all(0 <= expert < NUM_EXPERTS for token in experts for layer in token for expert in layer)


def test_experts_are_listed_pinned_and_evicted(client: Client) -> None:
    client.complete("Once", max_tokens=4)
    assert client.evict([(0, expert) for expert in range(NUM_EXPERTS)]).requested == NUM_EXPERTS
    assert {expert.residency for expert in client.experts().layers[0].experts} == {"disk"}
    assert client.pin([(0, 3)]).changed == 1
    assert client.pin([(0, 3)]).changed == 0
    pinned = client.expert(0, 3)
    while pinned.residency == "disk":  # it is being read
        pinned = client.expert(0, 3)
    assert (pinned.residency, pinned.pinned, pinned.variant) == ("host", True, "base")
    found = client.experts()
    assert found.tiers["host"].num_pinned == 1
    assert [len(layer.experts) for layer in found.layers] == [NUM_EXPERTS] * NUM_LAYERS
    assert found.num_experts == NUM_LAYERS * NUM_EXPERTS
    assert found.hottest(1)[0].tokens > 0
    assert client.unpin([(0, 3)]).changed == 1
    assert client.prefetch([(1, 0)]).requested == 1
    with pytest.raises(BadRequestError, match="layer 99"):
        client.pin([(99, 0)])
    with pytest.raises(NotFoundError, match="no expert 99"):
        client.expert(0, 99)


def test_experts_are_watched_while_they_work(server: Server) -> None:
    async def scenario() -> tuple[int, int]:
        async with AsyncClient(server.url) as client:
            watching = client.watch_experts(0.1)
            async with watching:
                frames = aiter(watching)
                first = await anext(frames)
                reply = await client.complete("Once upon a time", max_tokens=8, ignore_eos=True)
                frame = first
                while frame.generation_tokens < first.generation_tokens + 8:
                    frame = await anext(frames)
                assert frame.layers == tuple(range(NUM_LAYERS))
                assert reply.usage is not None
                routed = sum(map(sum, frame.tokens)) - sum(map(sum, first.tokens))
                return routed, reply.usage.prompt_tokens + 7

    routed, num_tokens = asyncio.run(scenario())
    assert routed % (num_tokens * NUM_LAYERS) == 0  # each token goes to the same number of experts in each layer
    assert routed > 0


def test_metrics_and_state(client: Client) -> None:
    client.complete("Once", max_tokens=4)
    assert client.metrics().total("generation_tokens_total") >= 4
    assert client.metrics().total("expert_lookups_total", phase="decode") > 0
    assert client.health().is_ok
    assert client.ready().status == "ready"


def test_both_programs_in_a_pipe(server: Server) -> None:
    lines = "/set max_tokens 8\n/set temperature 0\nTell me a story.\n/experts\n"
    chat = run_command("chat", "--url", server.url, stdin=lines)
    assert (chat.returncode, chat.stderr) == (0, "")
    assert "most used, as layer/expert (tokens): " in chat.stdout
    top = run_command("top", "--once", "--url", server.url)
    assert (top.returncode, top.stderr) == (0, "")
    assert f"of {NUM_LAYERS * NUM_EXPERTS} experts" in top.stdout
    assert top.stdout.count("▒") > 0
    assert top.stdout.startswith("greenroom-demo at http://")
