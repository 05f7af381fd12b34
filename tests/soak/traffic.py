"""Clients of every dialect, some of which leave, and the count of what they get."""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections import Counter
from dataclasses import dataclass, field

import httpx

from tests.soak.requests import Request, delta_of, error_of, make_request, text_of

ANSWER_SECONDS = 120.0  # without which a request counts as stalled
LEAVE_SHARE = 0.2
SLOW_SHARE = 0.05
READ_ERROR = re.compile(r"(an )?expert.* can't be read|expert \d+ of layer \d+ can't be read|can't be loaded")
BUSY = (429, 503)


@dataclass
class Counts:
    """Answers and errors that the clients got."""

    requests: Counter[str] = field(default_factory=Counter)  # by dialect
    left: int = 0  # clients that left
    errors: Counter[str] = field(default_factory=Counter)  # by kind
    unexpected: list[str] = field(default_factory=list)  # errors that no fault explains
    wrong_texts: list[str] = field(default_factory=list)  # texts that differ from those of equal requests before
    texts: dict[str, str] = field(default_factory=dict)  # by the key of requests

    def fail(self, kind: str, request: Request, message: str, *, is_expected: bool) -> None:
        self.errors[kind] += 1
        if not is_expected and len(self.unexpected) < 20:
            self.unexpected.append(f"{kind}: {request.path} {json.dumps(request.body)[:300]}: {message[:500]}")

    def add_text(self, request: Request, text: str) -> None:
        if request.key is None:
            return
        known = self.texts.setdefault(request.key, text)
        if known != text and len(self.wrong_texts) < 20:
            self.wrong_texts.append(f"{request.key}: {text!r}, before {known!r}")


@dataclass
class Traffic:
    """Clients that send requests until they are told to stop.

    Args:
        faults_are_on: returns whether reads fail on purpose.
        models: names of other weights, which come and go.
    """

    url: str
    counts: Counts
    models: tuple[str, ...]
    chance: random.Random
    is_over: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self, num_clients: int) -> None:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=self.url, timeout=None, limits=limits) as http:
            await asyncio.gather(*(self._client(http) for _ in range(num_clients)))

    async def _client(self, http: httpx.AsyncClient) -> None:
        while not self.is_over.is_set():
            request = make_request(self.chance, self.models)
            self.counts.requests[request.dialect] += 1
            leaves = self.chance.random() < LEAVE_SHARE
            patience = self.chance.random() * 0.4 if leaves else ANSWER_SECONDS
            try:
                async with asyncio.timeout(patience):
                    await self._ask(http, request)
            except TimeoutError:
                if leaves:
                    self.counts.left += 1
                else:
                    self.counts.fail("stalled", request, f"no end for {ANSWER_SECONDS:g} s", is_expected=False)
            except httpx.HTTPError as error:
                self.counts.fail(type(error).__name__, request, str(error), is_expected=False)
            await asyncio.sleep(self.chance.expovariate(1) * 0.05)

    async def _ask(self, http: httpx.AsyncClient, request: Request) -> None:
        is_slow = self.chance.random() < SLOW_SHARE
        async with http.stream("POST", request.path, json=request.body) as response:
            if response.status_code != httpx.codes.OK:
                body = (await response.aread()).decode()
                self._refused(request, response.status_code, error_of(json.loads(body)) or body)
            elif request.is_stream:
                await self._read_stream(response, request, is_slow=is_slow)
            else:
                self.counts.add_text(request, text_of(json.loads(await response.aread())))

    async def _read_stream(self, response: httpx.Response, request: Request, *, is_slow: bool) -> None:
        pieces: list[str] = []
        async for line in response.aiter_lines():
            text = line.removeprefix("data: ")
            if not text.startswith("{"):  # [DONE], a comment, the name of an event
                continue
            chunk = json.loads(text)
            if (error := error_of(chunk)) is not None:
                self._refused(request, response.status_code, error)
                return
            pieces.append(delta_of(chunk))
            if is_slow:
                await asyncio.sleep(0.05)
        self.counts.add_text(request, "".join(pieces))

    def _refused(self, request: Request, status: int, message: str) -> None:
        if READ_ERROR.search(message):
            self.counts.fail("read error", request, message, is_expected=True)
        elif status in BUSY:
            self.counts.fail("busy", request, message, is_expected=True)
        elif request.body["model"] in self.models and status in {400, 404}:
            self.counts.fail("weights gone", request, message, is_expected=True)
        else:
            self.counts.fail(f"status {status}", request, message, is_expected=False)
