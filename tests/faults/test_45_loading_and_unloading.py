"""Variants and adapters come and go while requests use them: memory, threads and handles stay as they are.

``GREENROOM_ROUNDS=1000`` makes as many rounds; by default there are few.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from server.model.checkpoint.locate import BUNDLED
from tests.adapters import write_adapter
from tests.e2e.processes import Server, serving
from tests.server.model.variants import other, read_tensors, save_variant

pytestmark = pytest.mark.slow

ROUNDS = int(os.environ.get("GREENROOM_ROUNDS", "12"))
WIDTH, MODEL = 192, "greenroom-demo"  # of the bundled model
MIB = 1 << 20
FEW = 5  # handles and threads that the server makes when it needs them for the first time


class Use(NamedTuple):
    """Resources that a process has of the machine."""

    handles: int
    threads: int
    resident_bytes: int

    @classmethod
    def of(cls, server: Server) -> Use:
        process = Path(f"/proc/{server.process.pid}")
        resident = int((process / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        return cls(len(list((process / "fd").iterdir())), len(list((process / "task").iterdir())), resident)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder, tensors = tmp_path_factory.mktemp("weights"), read_tensors(BUNDLED)
    for seed, name in enumerate(("law", "code")):
        save_variant(folder / name, other(tensors, lambda name: "layers.5.mlp.experts." in name, seed))
        write_adapter(folder / f"{name}-adapter", 0.01 * (seed + 1), inputs=WIDTH)
    folders = ("--experts-dir", str(folder), "--adapters-dir", str(folder), "--adapter-memory", "8MiB")
    with serving(*folders, "--host-expert-memory", "50%", "--dtype", "float32") as running:
        yield running


@pytest.fixture
def http(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=120) as client:
        yield client
        for kind in ("variant", "adapter"):
            unload(client, kind)


def load(http: httpx.Client, kind: str, name: str) -> str:
    """Load a variant or an adapter, and return the model that it is served as."""
    if kind == "variant":
        http.post("/v1/experts/load", json={"name": "new", "path": name}).raise_for_status()
        return f"{MODEL}:new"
    body = {"lora_name": "new", "lora_path": f"{name}-adapter", "load_inplace": True}
    http.post("/v1/load_lora_adapter", json=body).raise_for_status()
    return "new"


def unload(http: httpx.Client, kind: str) -> httpx.Response:
    if kind == "variant":
        return http.delete("/v1/experts/variants/new")
    return http.post("/v1/unload_lora_adapter", json={"lora_name": "new"})


def complete(http: httpx.Client, model: str, max_tokens: int = 4, prompt: str = "Once") -> httpx.Response:
    body = {"model": model, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True}
    return http.post("/v1/completions", json=body)


def text_of(answer: httpx.Response) -> str:
    text: str = answer.raise_for_status().json()["choices"][0]["text"]
    return text


def left(http: httpx.Client) -> list[str]:
    """Return the models that are served beside the base, and experts of variants that are in memory."""
    models = [model["id"] for model in http.get("/v1/models").json()["data"] if model["id"] != MODEL]
    places = [http.get(f"/v1/experts/5/{expert}").json()["variants"] for expert in range(16)]
    return models + [name for place in places for name in place]


@pytest.mark.parametrize("kind", ["variant", "adapter"])
def test_what_is_unloaded_in_use_serves_its_requests_to_their_end(
    http: httpx.Client, server: Server, kind: str
) -> None:
    model = load(http, kind, "law")
    wanted = text_of(complete(http, model, 200))
    with ThreadPoolExecutor(4) as threads:
        streams = [threads.submit(complete, http, model, 200) for _ in range(4)]
        while not server.total("num_requests_running"):
            pass
        assert unload(http, kind).status_code == 200
        found = {stream.result() for stream in streams}
    texts = {text_of(answer) for answer in found if answer.status_code == 200}
    assert texts == {wanted}
    assert {answer.status_code for answer in found} <= {200, 404}  # those that came too late are told so
    assert complete(http, model).status_code == 404
    assert left(http) == []


@pytest.mark.parametrize("kind", ["variant", "adapter"])
def test_loading_and_unloading_at_the_same_time_leaves_one_or_none(http: httpx.Client, kind: str) -> None:
    statuses: list[int] = []

    def load_often() -> None:
        with httpx.Client(base_url=http.base_url, timeout=120) as own:
            models = (load(own, kind, ("law", "code")[number % 2]) for number in range(6))
            statuses.extend(complete(own, model).status_code for model in models)

    def unload_often() -> None:
        with httpx.Client(base_url=http.base_url, timeout=120) as own:
            statuses.extend(unload(own, kind).status_code for _ in range(20))

    threads = [threading.Thread(target=target) for target in (load_often, unload_often, load_often)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(statuses) <= {200, 400, 404}
    unload(http, kind)
    assert left(http) == []
    assert http.get("/health").status_code == 200


@pytest.mark.timeout(120 + ROUNDS)
@pytest.mark.parametrize("kind", ["variant", "adapter"])
def test_rounds_leave_memory_threads_and_handles_as_they_were(http: httpx.Client, server: Server, kind: str) -> None:
    base, uses = text_of(complete(http, MODEL)), []
    for number in range(ROUNDS):
        model = load(http, kind, ("law", "code")[number % 2])
        complete(http, model).raise_for_status()
        assert unload(http, kind).status_code == 200
        uses.append(Use.of(server))
    first, last = uses[: ROUNDS // 3], uses[-ROUNDS // 3 :]
    assert max(use.handles for use in last) - max(use.handles for use in first) <= FEW
    assert max(use.threads for use in last) - max(use.threads for use in first) <= FEW
    growth = max(use.resident_bytes for use in last) - max(use.resident_bytes for use in first)
    assert growth < 16 * MIB, f"{growth / MIB:.1f} MiB more after {ROUNDS} rounds"
    assert text_of(complete(http, MODEL)) == base
    assert left(http) == []


@pytest.mark.parametrize("kind", ["variant", "adapter"])
def test_the_kv_cache_of_what_was_unloaded_is_used_again(http: httpx.Client, server: Server, kind: str) -> None:
    sizes = []
    for number in range(8):
        model = load(http, kind, ("law", "code")[number % 2])
        complete(http, model, prompt="Once upon a time. " * 100).raise_for_status()
        assert unload(http, kind).status_code == 200
        sizes.append(server.total("memory_bytes", 'part="kv_cache"'))
    assert max(sizes[2:]) <= max(sizes[:2])
