r"""Benchmark of serving over HTTP: latency and tokens/s by number of streams, and the server's overhead.

    python -m benchmarks.serving [MODEL] [--corpus DIR] [flags of greenroom serve]

The benchmark starts a server, or uses a running one with ``--url``. Each round has three kinds of load:

- bursts of 1, 4, 8 and 16 streams, with prompts and completions of fixed length: all are decoded in one batch, so the
time
  between tokens is the time of one step plus the overhead of the server;
- Poisson arrivals, at a rate that keeps about four streams running unless ``--rate`` is set;
- a prompt of 1,000 tokens, sent twice, to measure prefix reuse.

All values are medians over the rounds. ``step_ms`` is the engine's time for a decode step, from the server's metrics;
``alone_step_ms`` is the same in a process without a server and an event loop, with the same prompts; ``seen_step_ms``
is the time between tokens over HTTP. ``overhead_percent`` compares ``seen_step_ms`` with ``alone_step_ms``. Of this
overhead, ``outside_percent`` is spent between steps; the rest is slower steps, because the event loop and the load
generator share the cores and the interpreter. ``cpu_overhead_percent`` is the additional CPU time of the server for a
burst, compared with the engine alone; it is the more reliable value on a busy machine. ``server_us_per_token`` is CPU
time of the whole server, and ``loop_us_per_token`` that of its event loop's thread, including the cost per request;
``generator_us_per_token`` is CPU time of this process, which takes its share of the same cores.
The last line is one JSON object.

Prompts are the beginnings of held-out documents of ``--corpus``, or else random token ids.

GuideLLM 0.8 can measure a running server independently:

    guidellm run --backend kind=openai_http,target=http://127.0.0.1:8000 --profile kind=concurrent,streams=8 \
        --constraint kind=max_duration,seconds=15 --data kind=synthetic_text,prompt_tokens=32,output_tokens=64 \
        --tokenizer kind=hf_auto,model=server/demo/model
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from itertools import chain
from pathlib import Path

import numpy as np
import uvloop

from benchmarks.load_generator import Completion, Timing, burst, poisson
from benchmarks.serving_processes import EngineAlone, Server, engine_alone, serving
from server.cli.serve import add_arguments
from server.settings import ServeSettings, flag_name

LONG_PROMPT_TOKENS = 1000
BUSY_STREAMS = 4
RANDOM_IDS = (3, 4000)  # range of ids that are in any vocabulary and no special tokens of the bundled model
TOKENIZER = Path(__file__).parent.parent / "server" / "demo" / "model" / "tokenizer.json"
SHOWN = (
    "tokens_per_second",
    "ttft_p50_ms",
    "ttft_p99_ms",
    "itl_p50_ms",
    "itl_p99_ms",
    "step_ms",
    "alone_step_ms",
    "outside_percent",
    "overhead_percent",
    "cpu_overhead_percent",
    "server_us_per_token",
    "loop_us_per_token",
    "generator_us_per_token",
)


class Prompts:
    """Source of distinct prompts of any length."""

    def __init__(self, corpus: Path | None):
        self._random = np.random.default_rng(0)
        self._documents = None if corpus is None else held_out(corpus)

    def draw(self, num_tokens: int) -> list[int]:
        """Return the token ids of a new prompt."""
        if self._documents is None:
            return self._random.integers(*RANDOM_IDS, num_tokens).tolist()
        ids: list[int] = []
        while len(ids) < num_tokens:
            ids += self._documents[self._random.integers(len(self._documents))]
        return ids[:num_tokens]


def held_out(corpus: Path) -> list[list[int]]:
    """Return the token ids of the held-out documents of the bundled model's corpus."""
    from tokenizers import Tokenizer  # noqa: PLC0415  in the training extra, not needed for random ids

    from training.corpus import find_domains, read_documents, split_documents  # noqa: PLC0415

    domains = find_domains(corpus).items()
    texts = [text for name, path in domains for text in split_documents(name, read_documents(path))[1]]
    return [encoding.ids for encoding in Tokenizer.from_file(str(TOKENIZER)).encode_batch(texts)]


class Rounds:
    """Results of each round by kind of load, and their medians."""

    def __init__(self) -> None:
        self._values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))

    def add(self, load: str, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self._values[load][name].append(value)

    def medians(self) -> dict[str, dict[str, float]]:
        """Return medians by kind of load and name, to four digits."""
        return {
            load: {name: float(f"{statistics.median(values):.4g}") for name, values in figures.items()}
            for load, figures in self._values.items()
        }


def latencies(timings: Sequence[Timing]) -> dict[str, float]:
    """Return tokens/s, time to first token and inter-token latency."""
    start, end = min(timing.sent for timing in timings), max(timing.arrivals[-1] for timing in timings)
    first = [1e3 * timing.first_token_seconds for timing in timings]
    between = [1e3 * seconds for timing in timings for seconds in timing.between_tokens_seconds]
    return {
        "tokens_per_second": sum(timing.num_tokens for timing in timings) / (end - start),
        "ttft_p50_ms": float(np.quantile(first, 0.5)),
        "ttft_p99_ms": float(np.quantile(first, 0.99)),
        "itl_p50_ms": float(np.quantile(between, 0.5)),
        "itl_p99_ms": float(np.quantile(between, 0.99)),
    }


def run_burst(server: Server, alone: EngineAlone | None, work: Sequence[Completion]) -> dict[str, float]:
    """Generate completions in one batch, over HTTP and in the engine alone."""
    before, cpu, generator = server.decode_steps(), server.cpu_seconds(), time.process_time()
    timings = uvloop.run(burst(server.url, work))
    generator = time.process_time() - generator
    loop, total_cpu = (now - then for now, then in zip(server.cpu_seconds(), cpu, strict=True))
    steps, seconds = (now - then for now, then in zip(server.decode_steps(), before, strict=True))
    num_tokens = sum(timing.num_tokens for timing in timings)
    seen, step = statistics.mean(timing.step_seconds for timing in timings), seconds / steps
    alone_step, alone_cpu = (math.nan, math.nan) if alone is None else alone.run(work)
    return {
        **latencies(timings),
        "seen_step_ms": 1e3 * seen,
        "step_ms": 1e3 * step,
        "alone_step_ms": 1e3 * alone_step,
        "outside_percent": 100 * (seen - step) / step,
        "overhead_percent": 100 * (seen / alone_step - 1),
        "cpu_overhead_percent": 100 * (total_cpu / alone_cpu - 1),
        "server_us_per_token": 1e6 * total_cpu / num_tokens,
        "loop_us_per_token": 1e6 * loop / num_tokens,
        "generator_us_per_token": 1e6 * generator / num_tokens,
    }


class ServingBenchmark:
    """Runs the loads, round by round."""

    def __init__(self, server: Server, alone: EngineAlone | None, arguments: argparse.Namespace):
        self._server, self._alone, self._arguments = server, alone, arguments
        self._prompts = Prompts(arguments.corpus)

    def warm_up(self) -> None:
        """Fill the expert cache."""
        run_burst(self._server, self._alone, self._completions(max(self._arguments.streams)))

    def run_round(self, rounds: Rounds, number: int) -> None:
        """Run all kinds of load; each round begins with a different number of streams."""
        streams: list[int] = self._arguments.streams
        first = number % len(streams)
        step_seconds = 0.0
        for count in streams[first:] + streams[:first]:
            found = run_burst(self._server, self._alone, self._completions(count))
            rounds.add(f"burst of {count}", found)
            if count <= BUSY_STREAMS:
                step_seconds = max(step_seconds, found["seen_step_ms"] / 1e3)
        rate = self._arguments.rate or BUSY_STREAMS / (step_seconds * self._arguments.max_tokens)
        work = self._completions(self._arguments.requests)
        rounds.add("poisson", {"rate": rate, **latencies(uvloop.run(poisson(self._server.url, work, rate, number)))})
        rounds.add("prompt of 1,000 tokens", self._repeat_prompt())

    def _completions(self, count: int) -> list[Completion]:
        prompts = (self._prompts.draw(self._arguments.prompt_tokens) for _ in range(count))
        return [Completion(prompt, self._arguments.max_tokens) for prompt in prompts]

    def _repeat_prompt(self) -> dict[str, float]:
        work = [Completion(self._prompts.draw(LONG_PROMPT_TOKENS), 2)]
        first, again = (1e3 * uvloop.run(burst(self._server.url, work))[0].first_token_seconds for _ in range(2))
        return {"first_ttft_ms": first, "again_ttft_ms": again, "ratio": first / again}


def report(medians: dict[str, dict[str, float]], streams: Sequence[int]) -> None:
    """Print a table of the bursts, with tokens/s relative to the smallest burst."""
    least = medians[f"burst of {min(streams)}"]["tokens_per_second"]
    print("| streams |", " | ".join(SHOWN), "| ratio |")
    print("| --- " * (len(SHOWN) + 2) + "|")
    for count in streams:
        found = medians[f"burst of {count}"]
        found["ratio"] = round(found["tokens_per_second"] / least, 3)
        print(f"| {count} |", " | ".join(str(found[name]) for name in SHOWN), f"| {found['ratio']} |")
    for load, figures in medians.items():
        if not load.startswith("burst"):
            print(f"{load}:", ", ".join(f"{name} {value}" for name, value in figures.items()))


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add_arguments(parser)
    parser.add_argument("--url", help="URL of a running server, with a model whose vocabulary has the ids below 4,000")
    parser.add_argument("--corpus", type=Path, help="folder of the bundled model's corpus")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 4, 8, 16])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompt-tokens", type=int, default=32)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--requests", type=int, default=24, help="Poisson arrivals per round")
    parser.add_argument("--rate", type=float, help="Poisson arrivals per second")
    arguments = parser.parse_args()
    given = {flag_name(name): getattr(arguments, name) for name in ServeSettings.model_fields if name in arguments}
    flags = [*([arguments.model] if arguments.model else []), *chain.from_iterable(given.items())]
    rounds = Rounds()
    with ExitStack() as stack:
        if arguments.url:
            server, alone = Server(arguments.url), None
        else:
            server = stack.enter_context(serving(flags))
            alone = stack.enter_context(engine_alone(flags))
        bench = ServingBenchmark(server, alone, arguments)
        bench.warm_up()
        for number in range(arguments.rounds):
            bench.run_round(rounds, number)
            print(f"round {number + 1} of {arguments.rounds}", file=sys.stderr)
    medians = rounds.medians()
    report(medians, arguments.streams)
    setting = {name: getattr(arguments, name) for name in ("rounds", "prompt_tokens", "max_tokens", "requests")}
    print(json.dumps({"benchmark": "serving", "model": arguments.model or "bundled", **setting, "medians": medians}))


if __name__ == "__main__":
    main()
