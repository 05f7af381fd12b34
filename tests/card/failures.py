"""Lets calls of the runtime fail while a model runs: ``python -m tests.card.failures`` prints what happened as JSON.

A call fails in each run: an allocation, the record of an event, or the registration of pinned memory from some call on.
Steps run once more after an error, as the server does it.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from expert_store import BudgetError, ExpertKey, ExpertStore, ExpertStoreError, least_bytes
from server.engine.runner import PagedModelRunner
from server.kernels.compute_pool import ComputePool
from server.model.attention.kv_cache import KVCache
from server.model.step import SequenceChunk
from server.model.trunk.trunk import Trunk
from server.model.trunk_loader import load_trunk
from tests.card import counts
from tests.card.runtime import install
from tests.checkpoints import make_checkpoint

CARD = torch.device("cuda", 0)
SLOTS, MORE_SLOTS = 5, 9  # of the card for experts
STEPS, RUNS = 3, 4
FOREVER = 1 << 30
MIDDLE = 30  # number of an allocation in the layers of a step


@contextmanager
def failing(kind: str, first: int, count: int) -> Iterator[None]:
    """Let calls of a kind fail, counted from now."""
    counts.calls.clear()
    counts.failing[kind] = range(first, first + count)
    try:
        yield
    finally:
        counts.failing.clear()


class Model:
    """A model on the card, each of whose runs begins anew; by Triton decode steps become graphs."""

    def __init__(self, model: Path, *, with_triton: bool):
        pool = ComputePool(1, triton_device=CARD if with_triton else None)
        trunk = load_trunk(model, torch.float32, CARD, pool=pool)
        assert isinstance(trunk, Trunk)
        self.trunk, self.errors = trunk, list[str]()
        assert (trunk.module_steps.graphs is not None) == with_triton

    def open_store(self) -> ExpertStore:
        catalog = self.trunk.catalog
        device_bytes = least_bytes(catalog, SLOTS)
        return ExpertStore(catalog, least_bytes(catalog, SLOTS), device_bytes=device_bytes, device=CARD)

    def run(
        self, store: ExpertStore, kind: str = "", first: int = 0, count: int = 0, *, only_in: int | None = None
    ) -> list[torch.Tensor]:
        """Return the logits of a prompt and of single new tokens of two sequences.

        Args:
            kind, first, count: calls that fail.
            only_in: the step of these calls; None for all.
        """
        trunk = self.trunk
        groups = trunk.facts.kv_groups
        runner = PagedModelRunner(trunk, KVCache(groups, [8] * len(groups), 4, CARD), store)
        logits = []
        with nullcontext() if only_in is not None else failing(kind, first, count):
            for step in range(STEPS):
                with failing(kind, first, count) if step == only_in else nullcontext():
                    logits.append(self._step(runner, step, len(groups)))
        return logits

    def _step(self, runner: PagedModelRunner, step: int, num_groups: int) -> torch.Tensor:
        length = 1 if step else 3
        chunks = [
            SequenceChunk(
                [(5 * step + row + i) % 120 for i in range(length)], step + 2 * bool(step), [table] * num_groups
            )
            for row, table in enumerate(([3, 1], [5, 4]))
        ]
        try:
            return runner.run(chunks).logits.cpu()
        except (ExpertStoreError, RuntimeError) as error:
            self.errors.append(str(error))
            return runner.run(chunks).logits.cpu()


def fail_in_steps(model: Model, kind: str, count: int) -> dict[str, Any]:
    """Let a call fail in each of several runs, early and late; return what happened."""
    counts.clear()
    store = model.open_store()
    expected, num_calls = model.run(store), counts.calls[kind]
    store.close()
    model.errors, wrong, num_failed = [], 0, 0
    for number in range(RUNS):
        store, first = model.open_store(), number * num_calls // RUNS
        found = model.run(store, kind, first, count)
        num_failed += counts.calls[kind] > first
        wrong += sum(not torch.equal(one, other) for one, other in zip(found, expected, strict=True))
        store.check_integrity()
        store.close()
    return {"runs": RUNS, "failed": num_failed, "wrong": wrong, "errors": model.errors, "races": dict(counts.races)}


def fail_in_first_decode(model: Model) -> dict[str, Any]:
    """Let the first decode step fail once it has begun; return how many graphs are captured by those after it."""
    store, model.errors = model.open_store(), []
    model.run(store, "allocation", MIDDLE, 1, only_in=1)
    store.close()
    graphs = model.trunk.module_steps.graphs
    assert graphs is not None
    return {"errors": model.errors, "captured": sum(graph.is_captured for graph in graphs._graphs.values())}


def fail_in_resize(model: Model, count: int) -> dict[str, Any]:
    """Let allocations fail while the card's tier grows; return its slots, the error, and wrong logits after it."""
    store = model.open_store()
    expected, error = model.run(store), ""
    with failing("allocation", 0, count):
        try:
            store.resize(
                host_bytes=least_bytes(model.trunk.catalog, SLOTS),
                device_bytes=least_bytes(model.trunk.catalog, MORE_SLOTS),
            )
        except BudgetError as raised:
            error = str(raised)
    found = model.run(store)
    slots = store._state.pool_of[ExpertKey(0, 0).layer].device.num_slots
    store.check_integrity()
    store.close()
    wrong = sum(not torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    return {"slots": slots, "before": SLOTS, "error": error, "wrong": wrong}


def main() -> None:
    install()
    with tempfile.TemporaryDirectory() as folder:
        saved = make_checkpoint("qwen3_moe", Path(folder))
        model = Model(saved, with_triton=False)
        seen: dict[str, Any] = {
            "allocation": fail_in_steps(model, "allocation", 1),
            "event": fail_in_steps(model, "event", 1),
            "host register": fail_in_steps(model, "host register", FOREVER),
            "growth": fail_in_resize(model, 1),
            "growth and return": fail_in_resize(model, 2),
            "first decode": fail_in_first_decode(Model(saved, with_triton=True)),
        }
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
