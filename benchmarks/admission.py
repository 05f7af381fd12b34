"""Benchmark of working-set admission: requests whose experts do not fit together decode alternately in groups.

    python -m benchmarks.admission FOLDER [--kind by-domain|skewed] [--share 0.3] [--streams 16] [--rounds 3]

The checkpoint is written to FOLDER unless it exists. Two servers run side by side, with ``--admission auto`` and
``off``, and get the same bursts alternately: streams of four domains, each restricted to its domain's tokens by
``logit_bias``. With experts by domain, the experts of one domain fit in memory and those of all four do not. With the
skewed checkpoint, groups do not help, so the server should not use them, or only briefly. Prints medians over the
rounds, without the first, which is a warm-up. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
from pathlib import Path

import numpy as np

from benchmarks.domain_checkpoint import NUM_DOMAINS, domain_tokens, write_checkpoint_by_domain
from benchmarks.load_generator import Completion, burst
from benchmarks.serving_processes import Server, serving
from benchmarks.skewed_checkpoint import write_skewed_checkpoint

SETTINGS = ("auto", "off")
BIAS = 100
PROMPT_TOKENS = 32
WRITERS = {"by-domain": write_checkpoint_by_domain, "skewed": write_skewed_checkpoint}


def completions(num_streams: int, num_tokens: int, seed: int) -> list[Completion]:
    random = np.random.default_rng(seed)
    found = []
    for index in range(num_streams):
        tokens = domain_tokens(index % NUM_DOMAINS)
        more = {"logit_bias": {str(token): BIAS for token in tokens}, "temperature": 1.0, "seed": seed + index}
        found.append(Completion(random.choice(tokens, PROMPT_TOKENS).tolist(), num_tokens, more))
    return found


def measure(server: Server, work: list[Completion]) -> dict[str, float]:
    bytes_before, switches_before = server.metric("expert_loaded_bytes_total"), server.metric("expert_turns_total")
    timings = asyncio.run(burst(server.url, work))
    seconds = max(timing.arrivals[-1] for timing in timings) - min(timing.sent for timing in timings)
    gaps = [gap for timing in timings for gap in timing.between_tokens_seconds]
    num_tokens = sum(timing.num_tokens for timing in timings)
    return {
        "tokens_per_second": num_tokens / seconds,
        "ttft_p50_s": statistics.median(timing.first_token_seconds for timing in timings),
        "itl_p50_s": statistics.median(gaps),
        "longest_gap_s": max(gaps),
        "mb_read_per_token": (server.metric("expert_loaded_bytes_total") - bytes_before) / num_tokens / 1e6,
        "group_switches": server.metric("expert_turns_total") - switches_before,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kind", choices=WRITERS, default="by-domain")
    parser.add_argument("--share", type=float, default=0.3, help="share of the experts that fits in memory")
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    WRITERS[arguments.kind](arguments.folder)
    budget = ["--host-expert-memory", f"{100 * arguments.share:g}%"]
    rounds: dict[str, list[dict[str, float]]] = {setting: [] for setting in SETTINGS}
    model = str(arguments.folder)
    with (
        serving([model, *budget, "--admission", SETTINGS[0]]) as first,
        serving([model, *budget, "--admission", SETTINGS[1]]) as second,
    ):
        for index in range(arguments.rounds + 1):
            for setting, server in zip(SETTINGS, (first, second), strict=True):
                work = completions(arguments.streams, arguments.tokens, index * 1000)
                rounds[setting].append(measure(server, work))
                shown = {name: round(value, 3) for name, value in rounds[setting][-1].items()}
                print(f"round {index} {setting:5} {shown}", flush=True)
    medians = {
        setting: {name: statistics.median(each[name] for each in found[1:]) for name in found[0]}
        for setting, found in rounds.items()
    }
    ratio = medians["auto"]["tokens_per_second"] / medians["off"]["tokens_per_second"]
    print(
        json.dumps(
            {"benchmark": "admission", "kind": arguments.kind, "share": arguments.share, "gain": ratio} | medians
        )
    )


if __name__ == "__main__":
    main()
