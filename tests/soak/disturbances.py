"""Disturbances of a server besides its requests: failing reads, evictions, weights that come and go."""

from __future__ import annotations

import asyncio
import errno
import random
from collections import Counter
from collections.abc import Awaitable, Callable

import httpx

from tests.faults.file_faults import FAIL, READS, SHORTEN, STALL, FileFaults

NUM_LAYERS, NUM_EXPERTS = 6, 16  # of the bundled model
NAMES = ("one", "two")  # of adapters and variants, and of their folders


class Disturbances:
    """Changes the server and its files until it is told to stop.

    Args:
        faults: of the server's reads.
        pause_seconds: between two disturbances, on average.
    """

    def __init__(self, url: str, faults: FileFaults, chance: random.Random, pause_seconds: float):
        self._url, self._faults, self._chance, self._pause_seconds = url, faults, chance, pause_seconds
        self.counts: Counter[str] = Counter()
        self.unexpected: list[str] = []
        self.is_over = asyncio.Event()

    async def run(self) -> None:
        async with httpx.AsyncClient(base_url=self._url, timeout=120) as http:
            actions = (self._fail_reads, self._evict, self._pin, self._variant, self._adapter, self._look)
            waiting: list[Callable[[httpx.AsyncClient], Awaitable[None]]] = []
            while not self.is_over.is_set():
                waiting = waiting or self._chance.sample(actions, len(actions))  # each once, in another order
                action = waiting.pop()
                self.counts[action.__name__.removeprefix("_")] += 1
                await action(http)
                await asyncio.sleep(self._chance.expovariate(1) * self._pause_seconds)
            await self._restore(http)

    async def _fail_reads(self, http: httpx.AsyncClient) -> None:
        set_fault: Callable[[], None] = self._chance.choice(
            (
                lambda: self._faults.set(READS, FAIL, affected=3, error=errno.EIO),
                lambda: self._faults.set(READS, FAIL, affected=2, error=errno.ENOMEM),
                lambda: self._faults.set(READS, FAIL, affected=40, error=errno.EINTR),
                lambda: self._faults.set(READS, SHORTEN),
                lambda: self._faults.set(READS, STALL, millis=100, affected=20),
            )
        )
        set_fault()
        await self._evict(http)  # so that there are reads
        await asyncio.sleep(0.5)
        self._faults.clear()

    async def _evict(self, http: httpx.AsyncClient) -> None:
        places = [[layer, expert] for layer in range(NUM_LAYERS) for expert in range(NUM_EXPERTS)]
        await self._post(http, "/v1/experts/evict", {"experts": places})

    async def _pin(self, http: httpx.AsyncClient) -> None:
        places = [[self._chance.randrange(NUM_LAYERS), self._chance.randrange(NUM_EXPERTS)] for _ in range(8)]
        await self._post(http, "/v1/experts/pin", {"experts": places}, 400)  # some may be too many
        await asyncio.sleep(self._chance.random())
        await self._post(http, "/v1/experts/unpin", {"experts": places})

    async def _variant(self, http: httpx.AsyncClient) -> None:
        name = self._chance.choice(NAMES)
        if self._chance.random() < 0.3:
            await self._check(await http.delete(f"/v1/experts/variants/{name}"), 404)
        else:
            await self._post(http, "/v1/experts/load", {"name": name, "path": self._chance.choice(NAMES)})

    async def _adapter(self, http: httpx.AsyncClient) -> None:
        name = self._chance.choice(NAMES)
        if self._chance.random() < 0.3:
            await self._post(http, "/v1/unload_lora_adapter", {"lora_name": name}, 404)
        else:
            body = {"lora_name": name, "lora_path": self._chance.choice(NAMES), "load_inplace": True}
            await self._post(http, "/v1/load_lora_adapter", body)

    async def _look(self, http: httpx.AsyncClient) -> None:
        for path in ("/health", "/metrics", "/v1/experts", "/v1/models", "/v1/requests"):
            await self._check(await http.get(path))

    async def _restore(self, http: httpx.AsyncClient) -> None:
        """Let the server hold as much as at its start."""
        self._faults.clear()
        for name in NAMES:
            await self._check(await http.delete(f"/v1/experts/variants/{name}"), 404)
            await self._post(http, "/v1/unload_lora_adapter", {"lora_name": name}, 404)

    async def _post(self, http: httpx.AsyncClient, path: str, body: dict[str, object], *others: int) -> None:
        await self._check(await http.post(path, json=body), *others)

    async def _check(self, reply: httpx.Response, *others: int) -> None:
        if reply.status_code not in {200, *others} and len(self.unexpected) < 20:
            self.unexpected.append(f"{reply.request.url.path}: {reply.status_code} {reply.text[:500]}")
