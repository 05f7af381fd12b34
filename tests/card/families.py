"""Compares families whose experts are all on the card with the CPU.

``python -m tests.card.families [NAME ...]`` prints a JSON line for each, and ends with 1 if one is wrong: an error, a
race, or no graph where graphs are possible. Triton's interpreter runs the kernels.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from expert_store import ExpertStore
from server.kernels.compute_pool import ComputePool
from server.model.attention.kv_cache import KVCache
from server.model.sequential.sequential_trunk import SequentialTrunk
from server.model.trunk.trunk import Trunk
from server.model.trunk_loader import load_trunk
from tests.card import counts
from tests.card.checkpoints import SERVED
from tests.card.pairs import chunks_of_two
from tests.card.runtime import install
from tests.expert_store.waiting import wait_until_idle

CARD, CPU = torch.device("cuda", 0), torch.device("cpu")
LENGTHS = (5, 1, 1, 1, 2)  # tokens of each step, the same for two sequences
BLOCK = 4
MOST_ERROR = 2e-5  # of logits, relative to the largest


def logits_on(device: torch.device, folder: Path) -> tuple[torch.Tensor, Trunk | SequentialTrunk]:
    """Return the logits of some steps in which all experts are in the fastest tier, and the model."""
    pool = ComputePool(1, triton_device=CARD if device == CARD else None)
    trunk = load_trunk(folder, torch.float32, device, pool=pool)
    total = trunk.catalog.total_bytes
    store = ExpertStore(trunk.catalog, total, device_bytes=total if device == CARD else 0, device=device)
    groups = trunk.facts.kv_groups
    cache, states = KVCache(groups, [8] * len(groups), BLOCK, device), trunk.new_states(2)
    results, first = [], 0
    for layer in trunk.catalog.layers:
        with store.lease(dict.fromkeys(store._state.keys[layer], 1)) as lease:
            list(lease)
    for length in LENGTHS:
        wait_until_idle(store)
        chunks = chunks_of_two(first, length, LENGTHS[0], len(groups))
        results.append(trunk.forward(chunks, cache, store, states=states).logits.cpu())
        first += length
    store.close()
    return torch.cat(results), trunk


def compare(name: str) -> dict[str, Any]:
    """Return how far the card's logits of a family are from the CPU's, and how its steps ran."""
    counts.clear()
    with tempfile.TemporaryDirectory() as folder:
        model = SERVED[name](Path(folder))
        expected, _ = logits_on(CPU, model)
        found, trunk = logits_on(CARD, model)
    steps = trunk.module_steps if isinstance(trunk, Trunk) else None
    graphs, tables = (None, None) if steps is None else (steps.graphs, steps.strategies.tables)
    return {
        "error": float((found - expected).abs().max() / expected.abs().max()),
        "waitless": tables is not None,
        "graphs": None if graphs is None else sum(graph.is_captured for graph in graphs._graphs.values()),
        "races": len(counts.races),
    }


def main(names: list[str]) -> None:
    install()
    wrong = []
    for name in names or SERVED:
        try:
            result = compare(name)
        except Exception as error:  # noqa: BLE001  the others are compared still
            result = {"failed": f"{type(error).__name__}: {error}"[:300]}
        print(json.dumps({"family": name, **result}), flush=True)
        if "failed" in result or result["error"] > MOST_ERROR or result["races"] or result["graphs"] == 0:
            wrong.append(name)
    if wrong:
        sys.exit(f"wrong: {', '.join(wrong)}")


if __name__ == "__main__":
    main(sys.argv[1:])
