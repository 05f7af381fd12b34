"""Cost of a cluster's hops, and what the choice of a replica gains: ``python -m benchmarks.cluster hop|choice``.

``hop`` streams from one replica on Ray Serve and from a plain server of the same model, by turns, and prints time to
first token, tokens/s and their ratio by number of streams, of the best round and of the median one, and the processor
time of a token in microseconds, by part of the cluster and of the plain server. ``choice`` sends requests of four
domains, whose prompts begin alike within a domain, to two replicas that keep a part of the experts, with each way of
choosing, and prints medians of hit ratio, misses and tokens/s. Every process runs on this machine, so a machine with
few cores shows the processor time of all hops and not only their latency. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx
import psutil

from server.cluster.deploy_file import describe, write
from server.cluster.options import ClusterOptions

COMMAND = str(Path(sys.executable).parent / "greenroom")
DOMAINS = {
    "recipes": "Recipe for a pie with apples and butter. Peel the apples, and then",
    "legal": "The parties to this agreement shall indemnify each other, provided that",
    "python": "def quicksort(items: list[int]) -> list[int]:\n    if len(items) < 2:\n        return",
    "stories": "Once upon a time there was a king who had three daughters. The youngest",
}
PARTS = {  # of a cluster, by a part of the command that only they have
    "replica": "ServeReplica:greenroom:engine",
    "ingress": "ServeReplica:greenroom:ingress",
    "proxy": "ray::ProxyActor",
    "haproxy": "haproxy -",
    "controller": "ray::ServeController",
    "plain": "greenroom serve",
}
WAYS = ("round-robin", "two-choices", "prefix", "signature", "holdings")


class Stream(NamedTuple):
    """Times of one streamed reply, in seconds of one clock."""

    began: float
    first: float
    ended: float
    num_tokens: int


@contextmanager
def started(*arguments: str) -> Iterator[str]:
    """Start a command that prints a ready line, and yield its address."""
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen([COMMAND, *arguments], stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                log.seek(0)
                raise RuntimeError(f"greenroom {arguments[0]} has not started: {log.read()[-2000:]}")
            yield line.split()[2]
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=120)


@contextmanager
def cluster(model: str | None, **options: object) -> Iterator[str]:
    """Start a cluster on this machine, and yield its address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "cluster.yaml"
        checked = ClusterOptions.checked({"model": model, "drain_seconds": 5, **options})
        file.write_text(write(describe(checked, "127.0.0.1", port)))
        with started("cluster", "run", str(file)) as url:
            yield url


def stream(url: str, prompt: str | list[int], num_tokens: int) -> Stream:
    """Stream the completion of a text or of token ids."""
    asked = {"prompt": prompt, "max_tokens": num_tokens, "ignore_eos": True, "temperature": 0, "stream": True}
    began, first, count = time.perf_counter(), 0.0, 0
    with httpx.Client(timeout=600) as client, client.stream("POST", f"{url}/v1/completions", json=asked) as reply:
        reply.raise_for_status()
        for line in reply.iter_lines():
            if line.startswith("data: {"):
                first = first or time.perf_counter()
                count += 1
    return Stream(began, first, time.perf_counter(), num_tokens)


def token_ids(*numbers: int) -> list[int]:
    """Return a prompt that any vocabulary has, another one for other numbers."""
    rng = random.Random(repr(numbers))  # noqa: S311  no secret
    return [rng.randrange(100, 900) for _ in range(16)]


def together(url: str, prompts: Sequence[list[int]], num_tokens: int) -> tuple[float, float]:
    """Stream completions at once; return the median time to first token in ms, and tokens/s of all."""
    with ThreadPoolExecutor(len(prompts)) as pool:
        streams = list(pool.map(lambda prompt: stream(url, prompt, num_tokens), prompts))
    seconds = max(each.ended for each in streams) - min(each.began for each in streams)
    first = statistics.median(each.first - each.began for each in streams)
    return 1000 * first, sum(each.num_tokens for each in streams) / seconds


def processor_seconds() -> dict[str, float]:
    """Return the processor time of all processes that this one has started and that run, by part."""
    found: dict[str, float] = {}
    for process in psutil.Process().children(recursive=True):
        try:
            times, command = process.cpu_times(), " ".join(process.cmdline())
        except psutil.NoSuchProcess:
            continue
        part = next((part for part, title in PARTS.items() if title in command), "Ray")
        found[part] = found.get(part, 0.0) + times.user + times.system
    return found


def measure_hop(arguments: argparse.Namespace) -> dict[str, object]:
    """Compare one replica with a plain server."""
    threads = str(arguments.cpus)
    plain = ["serve", *([arguments.model] if arguments.model else []), "--port", "0", "--threads", threads]
    plain += ["--memory", arguments.memory, "--log-level", "warning"]
    settings: dict[str, object] = {"log_level": "warning"}
    if arguments.haproxy:
        os.environ["RAY_SERVE_ENABLE_HA_PROXY"] = "1"
        settings["admin_api_key"] = ["benchmark"]
    options = {"replicas": 1, "cpus": arguments.cpus, "memory": arguments.memory, "settings": settings}
    result: dict[str, object] = {}
    with started(*plain) as server, cluster(arguments.model, **options) as replicas:
        for url in (server, replicas):
            together(url, [token_ids(0)], 32)
        print("| streams | first token, ms: plain, cluster | tokens/s: plain, cluster | ratio | medians | by part |")
        print("| --- | --- | --- | --- | --- | --- |")
        for num_streams in map(int, arguments.streams.split(",")):
            rounds: dict[str, list[tuple[float, float]]] = {server: [], replicas: []}
            used: dict[str, list[dict[str, float]]] = {server: [], replicas: []}
            for number in range(arguments.rounds):
                for url, found in rounds.items():
                    prompts = [token_ids(number, each) for each in range(num_streams)]
                    before = processor_seconds()
                    found.append(together(url, prompts, arguments.tokens))
                    after = processor_seconds()
                    num_tokens = num_streams * arguments.tokens
                    used[url].append({part: 1e6 * (after[part] - before.get(part, 0.0)) / num_tokens for part in after})
            firsts, speeds = (
                [pick(each[column] for each in rounds[url]) for url in (server, replicas)]
                for column, pick in ((0, min), (1, max))
            )
            medians = [statistics.median(speed for _, speed in rounds[url]) for url in (server, replicas)]
            parts = {part: round(statistics.median(each.get(part, 0.0) for each in used[replicas])) for part in PARTS}
            parts["plain"] = round(statistics.median(each["plain"] for each in used[server]))
            told = ", ".join(f"{part} {cost}" for part, cost in parts.items() if cost)
            print(
                f"| {num_streams} | {firsts[0]:.1f}, {firsts[1]:.1f} | {speeds[0]:.0f}, {speeds[1]:.0f} "
                f"| {speeds[1] / speeds[0]:.2f} | {medians[0]:.0f}, {medians[1]:.0f}: {medians[1] / medians[0]:.2f} "
                f"| {told} |",
                flush=True,
            )
            result[str(num_streams)] = {
                "first_ms": firsts,
                "tokens_per_second": speeds,
                "medians": medians,
                "processor_us": parts,
            }
    return result


def measure_choice(arguments: argparse.Namespace) -> dict[str, object]:
    """Compare the ways of choosing one of two replicas: medians of several rounds."""
    found: dict[str, list[tuple[float, float, float]]] = {way: [] for way in arguments.ways.split(",")}
    for seed in range(arguments.rounds):
        for way, rounds in found.items():
            rounds.append(choose(arguments, way, seed))
            print(f"{way}, round {seed + 1}: hit ratio, misses a token, tokens/s: {rounds[-1]}", file=sys.stderr)
    result: dict[str, object] = {}
    print("| way | hit ratio | misses a token: median, lowest, highest | tokens/s |")
    print("| --- | --- | --- | --- |")
    for way, rounds in found.items():
        hits, misses, speeds = zip(*rounds, strict=True)
        middle = [statistics.median(values) for values in (hits, misses, speeds)]
        print(
            f"| {way} | {middle[0]:.3f} | {middle[1]:.2f}, {min(misses):.2f}, {max(misses):.2f} | {middle[2]:.0f} |",
            flush=True,
        )
        result[way] = {"hit_ratio": hits, "misses": misses, "tokens_per_second": speeds}
    return result


def choose(arguments: argparse.Namespace, way: str, seed: int) -> tuple[float, float, float]:
    """Send the requests to two new replicas; return the hit ratio, misses a token and tokens/s of their second half."""
    settings = {"host_expert_memory": arguments.share}
    options = {"replicas": 2, "cpus": arguments.cpus, "memory": arguments.memory, "routing": way}
    with cluster(arguments.model, settings=settings, **options) as url:
        rng = random.Random(seed)  # noqa: S311  no secret
        prompts = [
            f"{DOMAINS[name]} ({number})" for number in range(arguments.requests // len(DOMAINS)) for name in DOMAINS
        ]
        rng.shuffle(prompts)
        half = len(prompts) // 2
        for prompt in prompts[:half]:  # what replicas and router learn from
            stream(url, prompt, arguments.tokens)
        before = lookups(url)
        began = time.perf_counter()
        with ThreadPoolExecutor(arguments.concurrent) as pool:
            list(pool.map(lambda prompt: stream(url, prompt, arguments.tokens), prompts[half:]))
        seconds = time.perf_counter() - began
        found = {tier: count - before[tier] for tier, count in lookups(url).items()}
    num_tokens = (len(prompts) - half) * arguments.tokens
    return found["host"] / (found["host"] + found["disk"]), found["disk"] / num_tokens, num_tokens / seconds


def lookups(url: str) -> dict[str, float]:
    """Return how many look-ups of experts ended in each tier, all replicas together."""
    found = {"host": 0.0, "disk": 0.0}
    for line in httpx.get(f"{url}/metrics", timeout=60).text.splitlines():
        for tier in found:
            if line.startswith("greenroom_expert_lookups_total{") and f'tier="{tier}"' in line:
                found[tier] += float(line.rpartition(" ")[2])
    return found


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["hop", "choice"])
    parser.add_argument("--model", help="as for greenroom serve (default: the bundled model)")
    parser.add_argument("--memory", default="700MiB", help="of each server and replica")
    parser.add_argument("--cpus", type=int, default=1, help="threads of each")
    parser.add_argument("--streams", default="1,8", help="hop: numbers of streams at once")
    parser.add_argument(
        "--rounds", type=int, default=3, help="of which the best counts for hop, and the median for choice"
    )
    parser.add_argument("--tokens", type=int, default=128, help="of each reply")
    parser.add_argument("--haproxy", action="store_true", help="hop: HAProxy in place of Serve's own proxy")
    parser.add_argument("--ways", default=",".join(WAYS), help="choice: ways to compare")
    parser.add_argument("--share", default="50%", help="choice: experts that a replica keeps")
    parser.add_argument("--requests", type=int, default=80, help="choice: half of them warm up")
    parser.add_argument("--concurrent", type=int, default=4, help="choice: requests at a time")
    arguments = parser.parse_args()
    result = measure_hop(arguments) if arguments.what == "hop" else measure_choice(arguments)
    print(json.dumps({arguments.what: result, "cores": os.cpu_count()}))


if __name__ == "__main__":
    main()
