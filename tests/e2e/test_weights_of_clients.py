"""Variants and adapters as the Python clients, the chat and top see them, on the real command."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from client import AsyncClient, BadRequestError, Client, NotFoundError
from tests.e2e.processes import Server, run_command, serving
from tests.e2e.weights import make_weights
from tests.server.model.variants import read_tensors, save_variant

BASE = "greenroom-demo"
ASKED = {"max_tokens": 8, "temperature": 0}
PROMPT = "Once upon a time"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    flags = make_weights(tmp_path_factory.mktemp("weights"))
    with serving("--host-expert-memory", "50%", "--dtype", "float32", *flags) as running:
        yield running


@pytest.fixture
def loaded(server: Server) -> Iterator[Client]:
    with Client(server.url) as client:
        client.load_variant("law", "law")
        client.load_adapter("code", "code")
        client.load_adapter("poems", "poems")
        yield client
        for variant in client.variants():
            client.unload_variant(variant.name)
        for adapter in client.adapters():
            client.unload_adapter(adapter.name)


def test_a_variant_is_loaded_listed_used_and_unloaded(loaded: Client) -> None:
    variant = loaded.load_variant("law", "law")
    assert (variant.model, variant.layers, variant.experts, variant.num_requests) == (f"{BASE}:law", (5,), 16, 0)
    reply = loaded.complete(PROMPT, model=variant.model, **ASKED)
    assert (reply.model, reply.text) != (BASE, loaded.complete(PROMPT, **ASKED).text)
    (listed,) = loaded.variants()
    assert (listed.version, listed.num_requests) == (variant.version, 1)
    assert listed.tokens > 0
    assert listed.experts_resident > 0
    loaded.unload_variant("law")
    assert loaded.variants() == []
    with pytest.raises(NotFoundError):
        loaded.unload_variant("law")


def test_the_asynchronous_client_loads_and_mixes_adapters(server: Server, loaded: Client) -> None:
    async def scenario() -> tuple[str, str]:
        async with AsyncClient(server.url) as client:
            await client.load_adapter("code", "code", replace=True)
            mixed = [{"name": "code", "weight": 0.5}, {"name": "poems", "weight": 2}]
            stream = client.stream(PROMPT, adapters=mixed, **ASKED)
            text = "".join([token.text async for token in stream])
            return text, (await client.complete(PROMPT, **ASKED)).text

    mixed, own = asyncio.run(scenario())
    assert mixed != own
    assert {adapter.name: adapter.num_requests for adapter in loaded.adapters()} == {"code": 1, "poems": 1}


def test_a_refused_folder_is_an_error_of_the_client(loaded: Client) -> None:
    with pytest.raises(BadRequestError, match="can't be opened"):
        loaded.load_variant("law", "nowhere")


def test_the_chat_uses_a_variant_and_an_adapter(server: Server, loaded: Client) -> None:
    lines = f"/set max_tokens 4\n/model {BASE}:law\n/adapters add code 0.5\nHi\n"
    done = run_command("chat", "--url", server.url, stdin=lines)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"  code\n  poems\n* {BASE}:law\n  auto\n* code 0.5\n  poems\n" in done.stdout
    assert loaded.variants()[0].num_requests == 1
    assert {adapter.name: adapter.num_requests for adapter in loaded.adapters()} == {"code": 1, "poems": 0}


def test_top_lists_variants_and_adapters(server: Server, loaded: Client) -> None:
    loaded.complete(PROMPT, model="code", **ASKED)
    done = run_command("top", "--once", "--view", "weights", "--url", server.url)
    assert done.returncode == 0, done.stderr
    rows = {line.split()[0]: line for line in done.stdout.splitlines() if line}
    assert "host" in rows["code"]
    assert f"{BASE}:law" in rows


@pytest.mark.parametrize(("base", "status"), [(None, 200), ("0" * 32, 400)])
def test_a_variant_of_the_listed_base_is_taken_and_that_of_another_refused(
    server: Server, loaded: Client, base: str | None, status: int
) -> None:
    listed = httpx.get(f"{server.url}/v1/experts/variants").json()
    metadata = {"greenroom_base": base or listed["greenroom_base"]}
    own = Path(listed["folder"])
    save_variant(own / f"marked-{status}", read_tensors(own / "law"), metadata)
    answer = httpx.post(
        f"{server.url}/v1/experts/load", json={"name": "marked", "path": f"marked-{status}"}, timeout=60
    )
    assert answer.status_code == status, answer.text
    assert ("marked" in [variant.name for variant in loaded.variants()]) == (base is None)


def test_the_client_tells_which_adapter_a_router_chose(loaded: Client) -> None:
    loaded.load_adapter("code", "code", replace=True, examples=["def add(a, b): return a + b", "import os, sys"])
    reply = loaded.complete("import re, json", model="auto", routing={"threshold": -1}, **ASKED)
    assert reply.routing is not None
    assert (reply.routing.model, reply.model) == ("code", "code")
    stream = loaded.stream("import re, json", model="auto", routing={"threshold": -1}, **ASKED)
    assert list(stream)
    assert stream.result.routing is not None
    assert stream.result.routing.scores == reply.routing.scores
