"""Loads over HTTP: streams with prompts of one length, and a mixed load of all request kinds that use memory."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

import httpx

from benchmarks.comparison.engine_process import decode_speed
from benchmarks.load_generator import Completion, burst

REFUSALS = (429, 503)
LONG_PROMPT_TOKENS = 4000
WORKERS = 8  # concurrent requests of the mixed load
REPLY_SECONDS = 600.0
RETRY_SECONDS = 1.0  # pause after a refusal or a failure, which are immediate


@dataclass(frozen=True)
class Load:
    """Streams that begin together, each with its own prompt."""

    streams: int
    prompt_tokens: int
    new_tokens: int

    def run(self, url: str, vocab_size: int, seed: int) -> Speed:
        """Start all streams at once, and wait until they end.

        Raises:
            RefusedError: If the server refuses one.
            OSError, RuntimeError, TimeoutError: If one fails or ends early.
        """
        draw = random.Random(seed)  # noqa: S311
        prompts = [_prompt(draw, vocab_size, self.prompt_tokens) for _ in range(self.streams)]
        work = [Completion(prompt, self.new_tokens) for prompt in prompts]
        timings = asyncio.run(asyncio.wait_for(burst(url, work), REPLY_SECONDS * self.streams))
        start, end = min(timing.sent for timing in timings), max(timing.arrivals[-1] for timing in timings)
        decoding = decode_speed(timings)
        return Speed(
            decoding["first_token_seconds"],
            sum(timing.num_tokens for timing in timings) / (end - start),
            decoding["tokens"] / decoding["seconds"] if decoding["tokens"] else None,
        )


@dataclass(frozen=True)
class Speed:
    """Speed of a load."""

    first_token_seconds: float  # until every stream has its first token
    tokens_per_second: float  # generated tokens over the time of the load, including prompts
    decode_tokens_per_second: float | None  # once all streams have their first token; None if one ended before


class Mixture:
    """Mixed load: streams, long prompts, many choices, embeddings and prompt logprobs in random order."""

    def __init__(self, url: str, vocab_size: int, seed: int):
        self._url, self._vocab_size, self._draw = url, vocab_size, random.Random(seed)  # noqa: S311
        self._max_model_len = 0
        self._large_request = asyncio.Lock()  # held by a request of 128 sequences, half of the queue's capacity
        self.answered: Counter[str] = Counter()  # by request kind
        self.refused: Counter[str] = Counter()  # with 429 or 503
        self.failed: Counter[str] = Counter()

    async def run(self, seconds: float) -> None:
        """Keep requests running for a time, and wait for the last of them."""
        end = time.monotonic() + seconds
        requests = (
            self._stream,
            self._long_prompt,
            self._many_choices,
            self._embeddings,
            self._prompt_logprobs,
        )
        async with httpx.AsyncClient(base_url=self._url, timeout=REPLY_SECONDS) as client:
            models = (await client.get("/v1/models")).raise_for_status().json()
            self._max_model_len = models["data"][0]["max_model_len"]

            async def work() -> None:
                while time.monotonic() < end:
                    request = self._draw.choice(requests)
                    await self._count(request.__name__.strip("_"), request(client))

            await asyncio.gather(*(work() for _ in range(WORKERS)))

    async def _stream(self, client: httpx.AsyncClient) -> None:
        reply = await self._post(client, "completions", prompt=self._prompt(64), max_tokens=32, stream=True)
        if b'"error"' in reply:
            raise RuntimeError("the stream ended in an error")

    async def _long_prompt(self, client: httpx.AsyncClient) -> None:
        prompt = self._prompt(min(LONG_PROMPT_TOKENS, self._max_model_len - 4))
        await self._post(client, "completions", prompt=prompt, max_tokens=4)

    async def _many_choices(self, client: httpx.AsyncClient) -> None:
        async with self._large_request:
            await self._post(client, "completions", prompt=self._prompt(16), max_tokens=4, n=128)

    async def _embeddings(self, client: httpx.AsyncClient) -> None:
        async with self._large_request:
            await self._post(client, "embeddings", input=[self._prompt(64) for _ in range(128)])

    async def _prompt_logprobs(self, client: httpx.AsyncClient) -> None:
        await self._post(client, "completions", prompt=self._prompt(512), max_tokens=1, echo=True, logprobs=5)

    async def _count(self, kind: str, request: Coroutine[Any, Any, None]) -> None:
        try:
            await request
        except httpx.HTTPStatusError as error:
            (self.refused if error.response.status_code in REFUSALS else self.failed)[kind] += 1
            await asyncio.sleep(RETRY_SECONDS)
        except (OSError, RuntimeError, httpx.TransportError):
            self.failed[kind] += 1
            await asyncio.sleep(RETRY_SECONDS)
        else:
            self.answered[kind] += 1

    async def _post(self, client: httpx.AsyncClient, route: str, **body: object) -> bytes:
        return (await client.post(f"/v1/{route}", json=body)).raise_for_status().content

    def _prompt(self, num_tokens: int) -> list[int]:
        return _prompt(self._draw, self._vocab_size, num_tokens)


def _prompt(draw: random.Random, vocab_size: int, num_tokens: int) -> list[int]:
    """Return random token ids, without the lowest, which are often special tokens."""
    return [draw.randrange(min(256, vocab_size // 2), vocab_size) for _ in range(num_tokens)]
