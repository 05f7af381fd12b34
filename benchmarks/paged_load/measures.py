"""Measurements of a server that pages experts: prompts, another stream beside a prompt, and decoding."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.load_generator import Completion, Timing, burst, complete
from benchmarks.memory_use.server import GroupedServer
from benchmarks.paged_load.reads import ReadSampler

FIRST_ID = 300  # lower ids may be special tokens or single bytes
SHORT_PROMPT, QUIET_TOKENS = 64, 48  # of a stream that is watched, before a prompt comes
POLL_SECONDS = 0.005
SAMPLED = {"temperature": 1.0, "seed": 0}  # greedy texts of a random model repeat themselves, and so do their experts
REPLY_SECONDS, REPLY_SECONDS_PER_TOKEN = 300.0, 0.5
USES = ("prompt", "watched", "beside", "decoding")


def make_prompts(use: str, streams: int, tokens: int, *, seed: int, vocabulary: int) -> list[list[int]]:
    """Return the random prompts of a measurement, equal for all engines; those of other uses differ."""
    rng = np.random.default_rng([USES.index(use), streams, tokens, seed])
    return rng.integers(FIRST_ID, vocabulary, (streams, tokens)).tolist()


@dataclass(frozen=True)
class Experts:
    """The routed experts of a file."""

    count: int  # of all layers
    nbytes: int

    @property
    def mean_bytes(self) -> float:
        return self.nbytes / self.count


class Measures:
    """Measures one server.

    Args:
        disk_rate: measures bytes/s of direct reads, of which shares are given, before each measurement.
        seed: of prompts, see ``make_prompts``.
    """

    def __init__(
        self, server: GroupedServer, experts: Experts, vocabulary: int, *, disk_rate: Callable[[], float], seed: int
    ):
        self._server, self._experts, self._vocabulary = server, experts, vocabulary
        self._disk_rate = disk_rate
        self._seed = seed

    def prompt(self, tokens: int) -> dict[str, Any]:
        """Measure a prompt alone: time to the first token, bytes read, and the share of the disk's rate."""
        disk = self._disk_rate()
        missing = self._experts.nbytes - self._resident() * self._experts.mean_bytes
        completions = self._completions("prompt", 1, tokens, 1)
        with ReadSampler(self._server.process) as sampler:
            (timing,) = asyncio.run(self._wait(burst(self._server.url, completions), tokens))
            reads = sampler.reads()
        reported = timing.usage["greenroom"]
        return {
            "tokens": tokens,
            "first_token_seconds": timing.first_token_seconds,
            "bytes_read": reads.nbytes,
            "missing_bytes": round(missing),
            "read_over_missing": reads.nbytes / missing if missing else None,
            "reported_bytes": reported["expert_bytes_read"],
            "reported_misses": reported["expert_misses"],
            "stall_seconds": reported["expert_stall_seconds"],
            "disk_share": reads.disk_share(disk),
            "disk_bytes_per_second": disk,
            "cores": reads.cores,
        }

    def beside(self, tokens: int, context: int) -> dict[str, Any]:
        """Measure the time between tokens of a stream, before and while a prompt is read."""
        found = asyncio.run(self._wait(self._watch(tokens, context), tokens))
        return {"tokens": tokens, **found}

    def decoding(self, streams: int, tokens: int) -> dict[str, Any]:
        """Measure decoding: tokens/s, and the share of what the disk's rate allows.

        The limit is the time to read the experts that the steps had to read, without prefetches that were wasted.
        """
        disk = self._disk_rate()
        speed = asyncio.run(self._wait(self._decode(streams, tokens), streams * tokens))
        rate = speed.pop("read_bytes_per_second")
        share = rate / disk if rate else None
        return {"streams": streams, **speed, "share_of_disk_limit": share, "disk_bytes_per_second": disk}

    async def _watch(self, tokens: int, context: int) -> dict[str, Any]:
        watched = Timing(0.0)
        (shown,) = self._completions("watched", 1, SHORT_PROMPT, context - SHORT_PROMPT)
        (beside,) = self._completions("beside", 1, tokens, 1)
        stream = asyncio.create_task(complete(self._server.url, shown, watched))
        try:
            await _until(lambda: len(watched.arrivals) > QUIET_TOKENS, stream)
            quiet = list(watched.arrivals)
            prompt = await complete(self._server.url, beside)
            ended = stream.done()
        finally:
            stream.cancel()
            with suppress(asyncio.CancelledError):
                await stream
        meanwhile = [each for each in watched.arrivals if prompt.sent <= each <= prompt.arrivals[0]]
        gaps = np.diff([quiet[-1], *meanwhile, *([] if ended else [prompt.arrivals[0]])])
        return {
            "first_token_seconds": prompt.first_token_seconds,
            "without": _quantiles(np.diff(quiet)),
            "meanwhile": _quantiles(gaps),
            "stream_ended_first": ended,
        }

    async def _decode(self, streams: int, tokens: int) -> dict[str, Any]:
        timings = [Timing(0.0) for _ in range(streams)]
        completions = self._completions("decoding", streams, SHORT_PROMPT, tokens)
        work = [complete(self._server.url, *each) for each in zip(completions, timings, strict=True)]
        requests = asyncio.gather(*work)
        with ReadSampler(self._server.process) as sampler:
            await _until(lambda: all(timing.arrivals for timing in timings), requests)
            before, started = await asyncio.to_thread(self._server.samples), time.perf_counter()
            await requests
            nbytes = sampler.bytes_since(started)
        after, ended = await asyncio.to_thread(self._server.samples), max(each.arrivals[-1] for each in timings)
        made = sum(_tokens_after(timing, started) for timing in timings)
        grown = {key: value - before.get(key, 0.0) for key, value in after.items()}
        read = sum(
            value for key, value in grown.items() if key[:2] == ("expert_loaded_bytes_total", "disk")
        ) - self._experts.mean_bytes * grown.get(("expert_prefetches_total", "wasted"), 0.0)
        steps = grown["engine_steps_total", "decode"]
        seconds = ended - started
        return {
            "tokens_per_second": made / seconds if made else None,
            "bytes_read_per_token": nbytes / made if made else None,
            "experts_missed_per_step": read / self._experts.mean_bytes / steps if steps else None,
            "read_bytes_per_second": read / seconds if made and read > 0 else None,
        }

    async def _wait(self, work: Any, tokens: int) -> Any:
        return await asyncio.wait_for(work, REPLY_SECONDS + REPLY_SECONDS_PER_TOKEN * tokens)

    def _completions(self, use: str, streams: int, tokens: int, new_tokens: int) -> list[Completion]:
        prompts = make_prompts(use, streams, tokens, seed=self._seed, vocabulary=self._vocabulary)
        return [Completion(prompt, new_tokens, SAMPLED) for prompt in prompts]

    def _resident(self) -> int:
        return round(self._server.samples()["expert_resident", "host"])


async def _until(is_reached: Any, request: asyncio.Future[Any]) -> None:
    """Wait until a condition holds; an error of the request, or its end, ends the wait too."""
    while not is_reached():
        if request.done():
            request.result()
            return
        await asyncio.sleep(POLL_SECONDS)


def _tokens_after(timing: Timing, start: float) -> float:
    """Return the tokens that arrived after a time; a chunk counts as the mean number of tokens of its stream."""
    return timing.num_tokens / len(timing.arrivals) * sum(arrival > start for arrival in timing.arrivals)


def _quantiles(gaps: Any) -> dict[str, float] | None:
    if not len(gaps):
        return None
    return {"p50_seconds": float(np.quantile(gaps, 0.5)), "p95_seconds": float(np.quantile(gaps, 0.95))}
