"""Benchmark of the store's overhead: microseconds per MoE layer, with all experts resident and no computation.

    python -m benchmarks.layer_overhead

``layer_us`` is a layer of ``StepExperts`` (routing, lease, batches with their addresses, accounting) with a backend
that computes nothing, by tokens in the step. ``hold_us`` is the lease of a complete step (``hold_residents``): entering
it, reading its addresses, and closing it with the counts of all layers. Prints medians and 90th percentiles. The last
line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from expert_store import (
    ExpertCatalog,
    ExpertKey,
    ExpertLayout,
    ExpertStore,
    Extent,
    LayerEntry,
    ParameterRecipe,
    ParameterSpec,
    TensorSource,
)
from server.kernels.backend import ReadyExperts, SortedRows
from server.kernels.compute_pool import ComputePool
from server.model.experts.expert_layer import expert_layers
from server.model.experts.step_experts import StepExperts

LAYOUT = ExpertLayout((ParameterSpec("weight", torch.uint8, (4096,)),))
WARM_UP = 20  # steps
TOKENS = (1, 8, 64)


class NoBackend:
    """A kernel backend that computes nothing."""

    def run(self, rows: SortedRows, batches: Iterable[ReadyExperts], between: Callable[[], None]) -> torch.Tensor:
        for ready in batches:
            between()
            _ = ready.keys, ready.addresses
        return rows.hidden_states

    def run_unweighted(
        self, rows: SortedRows, batches: Iterable[ReadyExperts], between: Callable[[], None], *, is_exact: bool
    ) -> int:
        raise NotImplementedError  # the steps here have no native layers


def open_store(folder: Path, num_layers: int, num_experts: int) -> ExpertStore:
    """Return a store of small experts, all in memory."""
    path = folder / "experts"
    path.write_bytes(bytes(LAYOUT.slot_bytes))
    source = TensorSource("weight", torch.uint8, (LAYOUT.slot_bytes,), Extent(path, 0, LAYOUT.slot_bytes))
    experts: tuple[dict[str, ParameterRecipe], ...] = ({"weight": ParameterRecipe((source,))},) * num_experts
    catalog = ExpertCatalog(dict.fromkeys(range(num_layers), LayerEntry(LAYOUT, experts)))
    store = ExpertStore(catalog, catalog.total_bytes)
    for layer in range(num_layers):
        with store.lease({ExpertKey(layer, expert): 1 for expert in range(num_experts)}) as lease:
            for _ in lease.batches():
                pass
    return store


def microseconds(calls: Iterable[Callable[[], None]], warm_up: int) -> dict[str, float]:
    """Return the median and the 90th percentile of the duration of the calls."""
    times = []
    for call in calls:
        started = time.perf_counter()
        call()
        times.append((time.perf_counter() - started) * 1e6)
    median, high = np.percentile(times[warm_up:], [50, 90])
    return {"median": round(float(median), 1), "p90": round(float(high), 1)}


def layer_calls(store: ExpertStore, options: argparse.Namespace, num_tokens: int) -> Iterator[Callable[[], None]]:
    """Yield the layers of steps with random routing."""
    modules: dict[Any, int] = {}
    for layer in range(options.layers):
        modules[_Module(options.experts)] = layer
    layers = {
        module: replace(layer, backend=NoBackend())
        for module, layer in expert_layers(modules, store.catalog, ComputePool(1)).items()
    }
    rng = np.random.default_rng(0)
    hidden, weights = torch.zeros(num_tokens, 8), torch.zeros(num_tokens, options.top_k)
    for _ in range(options.steps + WARM_UP):
        step = StepExperts(store, layers, "decode")
        for module in modules:
            chosen = torch.from_numpy(choices(rng, num_tokens, options))
            yield partial(step.run, module, hidden, chosen, weights)


def hold_calls(store: ExpertStore, options: argparse.Namespace, num_tokens: int) -> Iterator[Callable[[], None]]:
    """Yield steps under a lease of all experts."""
    rng = np.random.default_rng(0)

    def step(rows: dict[int, Any]) -> None:
        hold = store.hold_residents()
        assert hold is not None
        with hold:
            _ = hold.addresses
            hold.close(rows, "decode")

    for _ in range(options.steps + WARM_UP):
        yield partial(
            step,
            {
                layer: np.bincount(choices(rng, num_tokens, options).ravel(), minlength=options.experts)
                for layer in range(options.layers)
            },
        )


def choices(rng: np.random.Generator, num_tokens: int, options: argparse.Namespace) -> Any:
    """Return distinct random experts for each token, ``(tokens, k)``."""
    return rng.permuted(np.tile(np.arange(options.experts), (num_tokens, 1)), axis=1)[:, : options.top_k].copy()


class _Module:
    def __init__(self, num_experts: int):
        self.num_experts = num_experts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--experts", type=int, default=64)
    parser.add_argument("--top-k", type=int, default=8)
    parser.add_argument("--steps", type=int, default=300)
    options = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {"benchmark": "layer_overhead", **vars(options), "layer_us": {}, "hold_us": {}}
    with tempfile.TemporaryDirectory() as name, torch.inference_mode():
        store = open_store(Path(name), options.layers, options.experts)
        for num_tokens in TOKENS:
            result["layer_us"][num_tokens] = microseconds(
                layer_calls(store, options, num_tokens), WARM_UP * options.layers
            )
            print(f"one layer, {num_tokens} tokens:", result["layer_us"][num_tokens])
        if hasattr(store, "hold_residents"):
            for num_tokens in TOKENS:
                result["hold_us"][num_tokens] = microseconds(hold_calls(store, options, num_tokens), WARM_UP)
                print(f"lease of a complete step, {num_tokens} tokens:", result["hold_us"][num_tokens])
        store.close()
    print(json.dumps(result))


if __name__ == "__main__":
    main()
