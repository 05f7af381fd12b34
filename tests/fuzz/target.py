"""Servers that traces are played against: an engine in this process behind a socket, or the real command."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from server.api.core.requests.loaded_model import LoadedModel
from server.api.core.service.service import Service
from server.loading.load import LoadedServer, load_server
from server.settings import ServeSettings, SettingsError
from tests.e2e.processes import serving
from tests.fuzz.generator import MODEL
from tests.fuzz.subjects import ADAPTERS, VARIANTS
from tests.server.live.conftest import LiveServer, serving_model

IDLE_SECONDS = 30.0  # that requests have to end once their clients have left

SPARE = "spare_mib"  # a setting of traces
LEAST = re.compile(r"set --memory to (\d+)MiB or more")
MAX_LOADS = 8  # the process may grow between two

Changes = dict[str, Callable[[float], None]]


class FindingError(Exception):
    """The server did something that it must never do."""


@dataclass
class Target:
    """A running server.

    Args:
        changes: changes that no route makes, by the kind of their event; each takes a share.
        check: raises FindingError if the idle server has lost or kept something.
    """

    url: str
    changes: Changes = field(default_factory=dict)
    check: Callable[[], None] = lambda: None


def arguments_of(subject: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a server of a subject."""
    common = {
        "served_model_name": MODEL,
        "dtype": "float32",
        "device": "cpu",
        "experts_dir": subject / "experts",
        "adapters_dir": subject / "adapters",
    }
    return common | settings


@contextmanager
def serving_in_process(subject: Path, settings: dict[str, Any]) -> Iterator[Target]:
    """Serve a subject in this process; at the end, check that no thread and no handle is left."""
    loaded = _load(subject, dict(settings))
    try:
        service = Service("1")
        service.metrics = loaded.metrics.render
        with serving_model(_model_of(loaded), loaded.engine, service=service) as live:
            target = Target(f"http://127.0.0.1:{live.port}", _changes_of(loaded))
            target.check = lambda: check_idle(live, loaded)
            yield target
    finally:
        loaded.close()


def _load(subject: Path, settings: dict[str, Any]) -> LoadedServer:
    """Load a subject, in little more than the least memory if a setting says so."""
    model, spare = str(subject / "model"), settings.pop(SPARE, None)
    needed = None if spare is None else 1
    for _ in range(MAX_LOADS):
        memory = {} if needed is None else {"memory": f"{needed}MiB"}
        try:
            return load_server(model, ServeSettings(**arguments_of(subject, settings | memory)))
        except SettingsError as error:
            least = LEAST.search(str(error))
            if least is None or spare is None:
                raise
            needed = int(least[1]) + spare
    raise FindingError(f"the server does not start with the memory that it asked for, {needed} MiB")


@contextmanager
def serving_alone(subject: Path, settings: dict[str, Any]) -> Iterator[Target]:
    """Serve a subject in this process, without prefixes that requests share."""
    loaded = _load(subject, settings)
    blocks = loaded.engine._blocks
    blocks._shares_prefixes, blocks._snapshots = False, None
    try:
        with serving_model(_model_of(loaded), loaded.engine) as live:
            yield Target(f"http://127.0.0.1:{live.port}")
    finally:
        loaded.close()


def _model_of(loaded: LoadedServer) -> LoadedModel:
    return LoadedModel(
        loaded.name,
        loaded.engine,
        loaded.codec,
        loaded.defaults,
        loaded.experts,
        lambda: loaded.store.health,
        card=loaded.card,
        adapters=None if loaded.adapters is None else loaded.adapters.registry,
        directory=loaded.directory,
        variants=loaded.variants,
    )


def _changes_of(loaded: LoadedServer) -> Changes:
    store, watcher = loaded.store, loaded.memory_watcher
    if watcher is None:
        most = store.tiers()["host"].budget_bytes
        return {"resize": lambda share: store.resize(host_bytes=int(share * most))}
    elastic = watcher._elastic_budget

    def squeeze(share: float) -> None:
        """Let other processes take a share of the memory for experts."""
        elastic.set_reserve(int(share * store.catalog.all_bytes) + _spare_bytes(elastic), "others", "a trace says so")

    return {"squeeze": squeeze}


def _spare_bytes(elastic: Any) -> int:
    """Return the bytes that experts and blocks don't take even if they are given all: the tiny model needs few."""
    spare: int = elastic._shared_bytes() + elastic.reserve_bytes - elastic._most_experts - elastic.allowance.limit_bytes
    return spare


def check_idle(live: LiveServer, loaded: LoadedServer) -> None:
    """Check that nothing runs, and that no slot, block or lease is lost or left.

    Raises:
        FindingError: something is.
    """
    statistics, deadline = loaded.engine.statistics, time.monotonic() + IDLE_SECONDS
    state = live.uvicorn.server_state  # a request whose client has left may be submitted still

    def is_idle() -> bool:
        has_left = not (state.connections or state.tasks)
        return has_left and not (statistics.num_running or statistics.num_waiting or loaded.engine.statuses())

    while not is_idle():
        if time.monotonic() > deadline:
            raise FindingError(f"left running: {len(state.tasks)} tasks, {loaded.engine.statuses()}")
        time.sleep(0.005)
    try:
        loaded.engine._blocks.check_integrity([])
        loaded.store.check_integrity()
        if loaded.adapters is not None:
            loaded.adapters.memory.store.check_integrity()
    except AssertionError as error:
        raise FindingError(f"integrity: {error}") from error
    leases = [entry.key for pool in loaded.store._state.pools for _, tier in pool.tiers for entry in _leased(tier)]
    if leases:
        raise FindingError(f"experts are leased though nothing runs: {leases}")


def _leased(tier: Any) -> list[Any]:
    return [entry for entry in [*tier._entries.values(), *tier._leaving] if entry.leases]


@contextmanager
def serving_command(subject: Path, settings: dict[str, Any]) -> Iterator[Target]:
    """Serve a subject by `greenroom serve`."""
    flags = [str(subject / "model")]
    for name, value in arguments_of(subject, settings).items():
        if name == SPARE:  # it depends on a process that is yet to start
            continue
        flag = f"--{name.replace('_', '-')}"
        flags += [flag] * value if isinstance(value, bool) else [flag, str(value)]
    with serving(*flags, fresh=True) as server:  # a fork server would be a process that it leaves behind
        target = Target(server.url)
        target.check = lambda: check_idle_command(target.url)
        yield target


def check_idle_command(url: str) -> None:
    """Check by its routes that nothing runs in a server.

    Raises:
        FindingError: something does.
    """
    deadline = time.monotonic() + IDLE_SECONDS
    while requests := httpx.get(f"{url}/v1/requests", timeout=IDLE_SECONDS).json()["data"]:
        if time.monotonic() > deadline:
            raise FindingError(f"left running: {requests}")
        time.sleep(0.02)


def load_weights(url: str) -> None:
    """Load all adapters and variants under their own names."""
    with httpx.Client(base_url=url, timeout=60) as http:
        for name in VARIANTS:
            http.post("/v1/experts/load", json={"name": name, "path": name}).raise_for_status()
        for name in ADAPTERS:
            http.post("/v1/load_lora_adapter", json={"lora_name": name, "lora_path": name}).raise_for_status()


def unload_weights(url: str) -> None:
    """Unload all that is loaded, and unpin all experts."""
    with httpx.Client(base_url=url, timeout=60) as http:
        for variant in http.get("/v1/experts/variants").json()["data"]:
            http.delete(f"/v1/experts/variants/{variant['name']}").raise_for_status()
        for adapter in http.get("/v1/adapters").json()["data"]:
            http.post("/v1/unload_lora_adapter", json={"lora_name": adapter["name"]}).raise_for_status()
        pinned = [
            [layer["layer"], expert["expert"]]
            for layer in http.get("/v1/experts").json()["layers"]
            for expert in layer["experts"]
            if expert["pinned"]
        ]
        http.post("/v1/experts/unpin", json={"experts": pinned}).raise_for_status()


@dataclass(frozen=True)
class Holdings:
    """Threads and open files of this process."""

    threads: tuple[str, ...]
    files: tuple[str, ...]

    @classmethod
    def take(cls) -> Holdings:
        files = []
        for file in Path("/proc/self/fd").iterdir():
            with suppress(FileNotFoundError):  # the one that lists them
                files.append(str(file.readlink()).partition(":")[0])  # without the number of a socket
        return cls(tuple(sorted(thread.name for thread in threading.enumerate())), tuple(sorted(files)))

    def excess_over(self, before: Holdings) -> list[str]:
        """Return what was not there before."""
        return [*_more(self.threads, before.threads), *_more(self.files, before.files)]


def _more(now: tuple[str, ...], before: tuple[str, ...]) -> list[str]:
    left = list(before)
    return [each for each in now if each not in left or left.remove(each)]  # type: ignore[func-returns-value]
