"""Serving a model before its download ends: ``python -m benchmarks.remote [--checkpoint FOLDER] [--mbit 100 1000]``.

``--skewed FOLDER`` serves a checkpoint of 2 GB with skewed routing, which is written first unless it is there.

A mirror of the hub in a process of its own sends the model over a link that all connections share. For prompts of
several lengths it measures the time from the start of the command to the first token, tokens/s, and what was sent until
then, beside ``hf download`` followed by serving. Then, without a server: the part of the link that reads which
somebody waits for get while the rest is downloaded, and the part that the trunk's load gets. The last line is one JSON
object. Start-up (imports, reading the trunk, tokenizer) is part of each time.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from benchmarks.hub_mirror import mirror, statistics
from benchmarks.serving_processes import READY
from benchmarks.skewed_checkpoint import topical_tokens, write_skewed_checkpoint
from expert_store.disk_cache.cached_source import CachedSource
from expert_store.disk_cache.disk_cache import DiskCache
from expert_store.disk_cache.fill import Fill
from expert_store.io.tensor_reads import NUM_READERS
from expert_store.io.tensor_reads import PART_BYTES as TRUNK_PART_BYTES
from expert_store.sources.base import OpenSource, Piece
from server.model.checkpoint.locate import BUNDLED
from server.model.checkpoint.remote.web_client import WebClient
from server.model.checkpoint.remote.web_source import WebSource

MODEL = "somebody/some-model"
NUM_TOKENS = 32
BURST_SECONDS = 0.25  # of the link, for the experts that some steps demand
FILL_ALONE_SECONDS = 1.5
TRUNK_SECONDS = 4.0  # of the link
NUM_SKEWED_LAYERS = 10
FILL_SECONDS = 0.3  # of the download before a burst
EXPERT_BYTES = 216 << 10
NUM_BURSTS = 9


def measure_answer(url: str, cache: Path, prompt: Sequence[int], started: float) -> dict[str, Any]:
    """Return when the first token came, how many came in a second, and the tokens, of a server that is yet to start."""
    with serving(url, cache) as server:
        ready = time.monotonic() - started
        body = {"model": MODEL, "prompt": list(prompt), "max_tokens": NUM_TOKENS, "temperature": 0, "ignore_eos": True}
        times, ready_sent, texts = [], statistics(url), []
        with httpx.stream("POST", f"{server}/v1/completions", json={**body, "stream": True}, timeout=600.0) as reply:
            for line in reply.iter_lines():
                if line.startswith("data: {"):
                    times.append(time.monotonic())
                    texts.append(json.loads(line.removeprefix("data: "))["choices"][0]["text"])
                    if len(times) == 1:
                        sent = statistics(url)
        return {
            "ready_seconds": ready,
            "first_token_seconds": times[0] - started,
            "tokens_per_second": (NUM_TOKENS - 1) / (times[-1] - times[0]),
            "text": "".join(texts),
            "trunk_bytes": ready_sent["sent_bytes"],
            "trunk_requests": ready_sent["num_requests"],
            "sent_bytes": sent["sent_bytes"],
            "num_requests": sent["num_requests"],
            "num_resolves": sent["num_resolves"],
        }


@contextmanager
def serving(url: str, cache: Path) -> Iterator[str]:
    command = [sys.executable, "-m", "server.cli", "serve", MODEL, "--port", "0", "--log-level", "warning"]
    with subprocess.Popen(
        [*command, "--memory", "3GiB"], stdout=subprocess.PIPE, text=True, env=environment(url, cache)
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line.startswith(READY):
            sys.exit("the server did not start")
        try:
            yield line.removeprefix(READY).split()[0]
        finally:
            process.terminate()


def environment(url: str, cache: Path) -> Mapping[str, str]:
    return {**os.environ, "HF_ENDPOINT": url, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1"}


def download(url: str, cache: Path) -> None:
    """Download the model as the hub's own command does."""
    command = [str(Path(sys.executable).parent / "hf"), "download", MODEL]
    subprocess.run(command, check=True, env=environment(url, cache), stdout=subprocess.DEVNULL)


def measure_first_tokens(
    checkpoint: Path, mbit: float, latency: float, lengths: Sequence[int], scratch: Path
) -> list[dict[str, Any]]:
    """Serve a model from a mirror, and after a download from it, by turns."""
    rows: list[dict[str, Any]] = []
    for length in lengths:
        prompt = topical_tokens(length, seed=0)
        for how in ("served", "downloaded"):
            with mirror(checkpoint, MODEL, mbit, latency) as url, tempfile.TemporaryDirectory(dir=scratch) as cache:
                started = time.monotonic()
                if how == "downloaded":
                    download(url, Path(cache))
                rows.append({"how": how, "mbit": mbit, "prompt_tokens": length})
                rows[-1] |= measure_answer(url, Path(cache), prompt, started)
            print(rows[-1], flush=True)
        same = rows[-1]["text"] == rows[-2]["text"]
        rows[-2]["is_that_of_the_disk"] = same
        print("the text is that of the disk" if same else "THE TEXTS DIFFER", flush=True)
    return rows


def measure_shares(checkpoint: Path, mbit: float, scratch: Path) -> dict[str, float]:
    """Return the part of the link that demand gets while the rest is downloaded, and that the trunk's load gets.

    Demand is bursts of reads of experts, six at a time, each burst of a quarter of a second of the link.
    """
    weights = max(checkpoint.glob("*.safetensors"), key=lambda path: path.stat().st_size)
    rate = mbit * 1e6 / 8
    with mirror(checkpoint, MODEL, mbit) as url, tempfile.TemporaryDirectory(dir=scratch) as folder:
        client = WebClient()
        source = WebSource(f"{url}/signed/{weights.name}", client)
        shares: dict[bool, list[float]] = {False: [], True: []}
        for number in range(2 * NUM_BURSTS):
            cached = CachedSource(source, DiskCache(Path(folder) / str(number)))
            opened, fill = cached.open(), Fill([cached])
            opened.read(
                [Piece(opened.identity.nbytes - 1, np.empty(1, np.uint8))]
            )  # as steps before have demanded some
            if is_filling := bool(number % 2):
                fill.start()
                time.sleep(FILL_SECONDS)
            nbytes = min(int(rate * BURST_SECONDS), opened.identity.nbytes // 2)
            begin = opened.identity.nbytes - 1 - nbytes
            shares[is_filling].append(rate_of(opened, begin, nbytes, EXPERT_BYTES) / rate)
            fill.stop()
        plain = source.open()
        trunk = rate_of(plain, 0, min(plain.identity.nbytes, int(TRUNK_SECONDS * rate)), TRUNK_PART_BYTES) / rate
        fill_share = rate_of_fill(source, Path(folder) / "fill") / rate
    alone, beside = (float(np.median(shares[is_filling])) for is_filling in (False, True))
    return {
        "mbit": mbit,
        "demand_alone": alone,
        "demand_beside_fill": beside,
        "share": beside / alone,
        "trunk": trunk,
        "fill_alone": fill_share,
    }


def rate_of_fill(source: WebSource, folder: Path) -> float:
    """Download a part of a file while nothing demands the link, and return the bytes a second."""
    cached = CachedSource(source, DiskCache(folder))
    cached.open()
    fill, started = Fill([cached]), time.perf_counter()
    fill.start()
    time.sleep(FILL_ALONE_SECONDS)
    fill.stop()
    return fill.progress().held_bytes / (time.perf_counter() - started)


def rate_of(opened: OpenSource, begin: int, nbytes: int, part_bytes: int) -> float:
    """Read a range in parts, six at a time, and return the bytes a second."""
    parts = [
        Piece(begin + done, np.empty(min(part_bytes, nbytes - done), np.uint8)) for done in range(0, nbytes, part_bytes)
    ]
    with ThreadPoolExecutor(NUM_READERS) as pool:
        started = time.perf_counter()
        for _ in pool.map(lambda part: opened.read([part]), parts):
            pass
        return nbytes / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=BUNDLED)
    parser.add_argument("--skewed", type=Path)
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before each answer begins")
    parser.add_argument("--mbit", type=float, nargs="+", default=[100.0, 1000.0])
    parser.add_argument("--prompts", type=int, nargs="+", default=[1, 32, 512])
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()))
    arguments = parser.parse_args()
    checkpoint: Path = arguments.checkpoint
    if arguments.skewed is not None:
        checkpoint = arguments.skewed
        write_skewed_checkpoint(checkpoint, NUM_SKEWED_LAYERS)
    shares = [measure_shares(checkpoint, mbit, arguments.scratch) for mbit in arguments.mbit]
    for row in shares:
        print(row, flush=True)
    answers = [
        row
        for mbit in arguments.mbit
        for row in measure_first_tokens(checkpoint, mbit, arguments.latency, arguments.prompts, arguments.scratch)
    ]
    print(json.dumps({"checkpoint": checkpoint.name, "shares": shares, "answers": answers}))


if __name__ == "__main__":
    main()
