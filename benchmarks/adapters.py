"""Measures what adapters and expert variants cost: tokens a second of mixed batches beside those of the base model.

    python -m benchmarks.adapters [MODEL] [--streams 8] [--variants 20] [--rounds 5] [flags of greenroom serve]

Makes random LoRA adapters (rank 16, on all attention projections) and expert variants (some experts of every layer).
Runs batches in turn: all streams on the base, each on an adapter of its own, all on one adapter, each on a variant of
its own, all on one variant. Prints medians, and ratios to the base in the same round; the last line is one JSON object.
``--cold-rounds`` measures the first token of an adapter that is on disk only. ``--load-rounds`` loads and unloads an
adapter and a variant so many times, with a stream on each, and reports memory, threads and handles; prefixes of each
version fill the KV cache meanwhile, so give it a small ``--kv-cache-memory``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from benchmarks.engine_alone import sampling_defaults
from server.cli.serve import add_arguments
from server.engine.interface import GenerationRequest, RequestWeights, SamplingParams
from server.loading.load import LoadedServer, load_server
from server.model.checkpoint.locate import find_checkpoint
from server.model.lora.targets import LoraTargets
from server.settings import load_settings

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
PROMPT_TOKENS = 64
POLL_SECONDS = 0.005
PRELOAD_SECONDS = 600
SCALE = 0.02  # of random weights


def write_adapter(folder: Path, targets: LoraTargets, rank: int, seed: int) -> None:
    """Write a random adapter on all attention projections, as PEFT saves it."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, (inputs, outputs) in targets.linears.items():
        if name.rpartition(".")[2] in ATTENTION:
            start = f"base_model.model.{name}.lora_"
            tensors[f"{start}A.weight"] = torch.randn(rank, inputs, generator=generator).bfloat16() * SCALE
            tensors[f"{start}B.weight"] = torch.randn(outputs, rank, generator=generator).bfloat16() * SCALE
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": list(ATTENTION)}
    (folder / "adapter_config.json").write_text(json.dumps(config))


def write_variant(folder: Path, checkpoint: Path, num_experts: int, per_layer: int, seed: int) -> None:
    """Write a variant with the base's weights, moved a little, for some experts of every layer."""
    chosen = random.Random(seed)  # noqa: S311  no secret
    picked: dict[str, set[int]] = {}
    tensors = {}
    for shard in sorted(checkpoint.glob("*.safetensors")):
        with safe_open(shard, "pt") as file:
            for name in file.keys():  # noqa: SIM118  not a dictionary
                layer, mark, rest = name.partition(".experts.")
                if not mark or "shared" in name:
                    continue
                experts = picked.setdefault(layer, set(chosen.sample(range(num_experts), per_layer)))
                if int(rest.partition(".")[0]) in experts:
                    tensor = file.get_tensor(name)
                    tensors[name] = (tensor.float() * (1 + SCALE * torch.randn(1))).to(tensor.dtype)
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")


def run(loaded: LoadedServer, weights: Sequence[RequestWeights | None], max_tokens: int) -> dict[str, float]:
    """Generate one completion for each of some weights, in one batch; return tokens a second while decoding."""

    async def submit() -> None:
        for number, own in enumerate(weights):
            prompt = random.Random(number).choices(range(100, 1000), k=PROMPT_TOKENS)  # noqa: S311  no secret
            sampling = SamplingParams(max_tokens, ignore_eos=True, seed=number, **sampling_defaults(loaded))
            loaded.engine.submit(GenerationRequest(str(number), tuple(prompt), sampling, weights=own))

    counters, store = loaded.engine.statistics, loaded.store
    num_finished = counters.finished.total() + len(weights)
    steps, seconds = counters.steps["decode"], counters.step_seconds["decode"]
    lookups = store.statistics().lookups
    asyncio.run(submit())
    while counters.finished.total() < num_finished or counters.num_running:
        time.sleep(POLL_SECONDS)
    steps, seconds = counters.steps["decode"] - steps, counters.step_seconds["decode"] - seconds
    found = store.statistics().lookups - lookups
    total = max(1, sum(count for (_, phase), count in found.items() if phase == "decode"))
    misses = sum(count for (tier, phase), count in found.items() if phase == "decode" and tier == "disk")
    return {
        "tokens_per_second": steps * len(weights) / seconds,
        "hit_ratio": 1 - misses / total,
        "experts_per_step": total / max(1, steps),
    }


def measure(cases: dict[str, Callable[[], dict[str, float]]], rounds: int) -> dict[str, dict[str, float]]:
    """Run all cases in turn, after one round that is not counted; return medians, and ratios to the base."""
    results: dict[str, list[dict[str, float]]] = {name: [] for name in cases}
    for number in range(rounds + 1):
        for name, case in cases.items():
            result = case()
            if number:
                results[name].append(result)
                print(f"round {number} {name}: {result['tokens_per_second']:.1f} tokens/s", flush=True)
    report: dict[str, dict[str, float]] = {}
    for name, found in results.items():
        report[name] = {key: round(statistics.median(each[key] for each in found), 4) for key in found[0]}
        base = results[f"base_{name.rpartition('_')[2]}"]
        ratios = [own["tokens_per_second"] / each["tokens_per_second"] for own, each in zip(found, base, strict=True)]
        report[name]["ratio"] = round(statistics.median(ratios), 3)
    return report


def load_and_unload(loaded: LoadedServer, folder: Path, rounds: int) -> dict[str, Any]:
    """Load and unload an adapter and a variant, each with a stream on it; return what the process holds."""
    assert loaded.adapters is not None
    process, states = psutil.Process(), []
    for number in range(rounds):
        loaded.adapters.registry.load_own("again", str(folder / "adapter0"))
        loaded.variants.load("again", "variant0")
        weights = [loaded.directory.resolve("again"), loaded.directory.resolve(f"{loaded.name}:again")]
        run(loaded, weights, 4)
        loaded.adapters.registry.unload("again")
        loaded.variants.unload("again")
        if number in {rounds // 10, rounds - 1}:
            states.append(
                {"rss": process.memory_info().rss, "threads": process.num_threads(), "handles": process.num_fds()}
            )
    return {"rounds": rounds, "after_a_tenth": states[0], "at_the_end": states[-1]}


def drop_from_page_cache(path: Path) -> None:
    """Write a file to the disk, and drop it from the page cache."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def first_token_seconds(loaded: LoadedServer, weights: RequestWeights | None, seed: int) -> float:
    """Return the time from a request to its only token."""

    async def submit() -> None:
        prompt = random.Random(seed).choices(range(100, 1000), k=PROMPT_TOKENS)  # noqa: S311  no secret
        sampling = SamplingParams(1, ignore_eos=True, seed=seed, **sampling_defaults(loaded))
        stream = loaded.engine.submit(GenerationRequest(f"first{seed}", tuple(prompt), sampling, weights=weights))
        async for _ in stream:
            pass

    started = time.perf_counter()
    asyncio.run(submit())
    return time.perf_counter() - started


def cold_adapter(loaded: LoadedServer, folder: Path, rank: int, rounds: int) -> dict[str, float]:
    """Measure the first token of the base, and that of an adapter before and after its first use; return medians.

    ``ratio`` is the time of the cold adapter's first token over the base's plus twice the time to read its file.
    """
    assert loaded.adapters is not None
    found: dict[str, list[float]] = {"base_seconds": [], "read_seconds": [], "cold_seconds": [], "warm_seconds": []}
    for number in range(rounds):
        path, seed = folder / f"cold{number}", 10 * number + 100
        write_adapter(path, loaded.adapters.registry.targets, rank, seed)
        weights_file = path / "adapter_model.safetensors"
        loaded.adapters.registry.load_own(path.name, str(path))
        drop_from_page_cache(weights_file)
        started = time.perf_counter()
        weights_file.read_bytes()
        found["read_seconds"].append(time.perf_counter() - started)
        drop_from_page_cache(weights_file)
        weights = loaded.directory.resolve(path.name)
        found["base_seconds"].append(first_token_seconds(loaded, None, seed))
        found["cold_seconds"].append(first_token_seconds(loaded, weights, seed + 1))
        found["warm_seconds"].append(first_token_seconds(loaded, weights, seed + 2))
        loaded.adapters.registry.unload(path.name)
    report = {name: statistics.median(seconds) for name, seconds in found.items()}
    report["ratio"] = report["cold_seconds"] / (report["base_seconds"] + 2 * report["read_seconds"])
    return {name: round(value, 4) for name, value in report.items()}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--variants", type=int, default=20)
    parser.add_argument("--replaced", type=int, default=2, help="experts of each layer that a variant replaces")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--cold-rounds", type=int, default=0)
    parser.add_argument("--load-rounds", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as path:
        folder = Path(path)
        arguments.experts_dir, arguments.adapters_dir = folder, folder
        loaded = load_server(arguments.model, load_settings(vars(arguments), os.environ, arguments.config))
        checkpoint, _ = find_checkpoint(arguments.model, None)
        if not isinstance(checkpoint, Path):
            parser.error("MODEL must be a folder")
        num_experts = loaded.store.catalog.num_experts
        assert loaded.adapters is not None
        for number in range(arguments.streams):
            write_adapter(folder / f"adapter{number}", loaded.adapters.registry.targets, arguments.rank, number)
            loaded.adapters.registry.load_own(f"adapter{number}", str(folder / f"adapter{number}"))
        for number in range(arguments.variants):
            write_variant(folder / f"variant{number}", checkpoint, num_experts, arguments.replaced, number)
            loaded.variants.load(f"variant{number}", f"variant{number}")
        if not loaded.preloader.wait_until_done(PRELOAD_SECONDS):
            raise SystemExit(f"the experts were not read in {PRELOAD_SECONDS} s")

        def batch(names: Sequence[str | None]) -> Callable[[], dict[str, float]]:
            return lambda: run(loaded, [loaded.directory.resolve(name) for name in names], arguments.tokens)

        streams, variants = arguments.streams, arguments.variants
        cases = {
            f"base_{streams}": batch([None] * streams),
            f"own_adapters_{streams}": batch([f"adapter{number}" for number in range(streams)]),
            f"one_adapter_{streams}": batch(["adapter0"] * streams),
            f"base_{variants}": batch([None] * variants),
            f"own_variants_{variants}": batch([f"{loaded.name}:variant{number}" for number in range(variants)]),
            f"one_variant_{variants}": batch([f"{loaded.name}:variant0"] * variants),
        }
        report: dict[str, Any] = {"model": loaded.name, **measure(cases, arguments.rounds)}
        if arguments.cold_rounds:
            report["cold_adapter"] = cold_adapter(loaded, folder, arguments.rank, arguments.cold_rounds)
        if arguments.load_rounds:
            report["load_rounds"] = load_and_unload(loaded, folder, arguments.load_rounds)
        loaded.close()
    print(json.dumps(report))


if __name__ == "__main__":
    main()
