"""Compares models that page experts through the second of two cards with the CPU.

``python -m tests.card.paging [NAME ...]`` prints a JSON line for each. The card has few slots, the quota of pinned
memory is smaller than what the host holds, and torch runs the experts.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from expert_store import ExpertStore, least_bytes
from server.kernels.compute_pool import ComputePool
from server.kernels.current_device import current_device
from server.model.attention.kv_cache import KVCache
from server.model.trunk_loader import load_trunk
from tests.card import counts
from tests.card.checkpoints import CHECKPOINTS
from tests.card.pairs import chunks_of_two
from tests.card.runtime import Runtime, install

CARD, CPU = torch.device("cuda", 1), torch.device("cpu")
LENGTHS = (4, 1)  # tokens of each step, the same for two sequences
BLOCK, BLOCKS = 4, 8
HOST_SLOTS, CARD_SLOTS = 6, 3
PINNED_LIMIT = 20_000  # bytes


def logits_on(device: torch.device, model: Path) -> torch.Tensor:
    """Return the logits of a prompt and a step of two sequences."""
    with current_device(device):
        trunk = load_trunk(model, torch.float32, device, pool=ComputePool(1))
    on_card = least_bytes(trunk.catalog, CARD_SLOTS) if device == CARD else 0
    store = ExpertStore(trunk.catalog, least_bytes(trunk.catalog, HOST_SLOTS), device_bytes=on_card, device=device)
    groups = trunk.facts.kv_groups
    cache, states = KVCache(groups, [BLOCKS] * len(groups), BLOCK, device), trunk.new_states(2)
    results, first = [], 0
    for length in LENGTHS:
        chunks = chunks_of_two(first, length, LENGTHS[0], len(groups))
        results.append(trunk.forward(chunks, cache, store, states=states).logits.cpu())
        first += length
    store.check_integrity()
    store.close()
    return torch.cat(results)


def compare(name: str, runtime: Runtime) -> dict[str, Any]:
    """Return how far the card's logits are from the CPU's, and what happened on the card."""
    with tempfile.TemporaryDirectory() as folder:
        model = CHECKPOINTS[name](Path(folder))
        expected = logits_on(CPU, model)
        counts.clear()
        found = logits_on(CARD, model)
    return {
        "error": float((found - expected).abs().max() / expected.abs().max()),
        "races": dict(counts.races),
        "devices": sorted({device for device, _ in counts.contexts}),
        "left pinned": len(runtime.pinned),
    }


def main(names: list[str]) -> None:
    runtime = install(num_devices=2, pinned_limit=PINNED_LIMIT)
    for name in names or CHECKPOINTS:
        try:
            result = compare(name, runtime)
        except Exception as error:  # noqa: BLE001  the others are compared still
            result = {"failed": f"{type(error).__name__}: {error}"[:500]}
        print(json.dumps({"name": name, **result}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
