"""Prefetching changes residency, and no bit of the logits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from expert_store import ExpertKey, ExpertStore, Prefetcher, PrefetchMode, least_bytes, make_prefetcher
from expert_store.prefetching.governor import Governor
from server.kernels.compute_pool import ComputePool
from server.kernels.native.available import availability
from server.kernels.native.library import Kernels
from server.model.checkpoint.locate import BUNDLED
from server.model.trunk.trunk import Trunk
from server.model.trunk_loader import load_trunk
from tests.checkpoints import CONFIGS, make_checkpoint
from tests.server.model.test_parity import generate
from tests.server.model.variants import base_of, load, other, read, read_tensors, save_variant

BLOCK = 16  # tokens, of the kernels' cache
MODES: tuple[PrefetchMode, ...] = ("gate", "coactivation", "auto")
MODELS = (*CONFIGS, "bundled")
# Gates differ from model to model; the other modes know keys beside them, so that one model shows them.
CASES = [*((name, "gate") for name in MODELS), *(("qwen3_moe", mode) for mode in MODES if mode != "gate")]


class AlwaysOn(Governor):
    """Prefetches in every step."""

    is_active = True  # type: ignore[assignment]


class CountingStore:
    """The prefetching part of a store; counts what it admits, and keeps what it was asked for."""

    def __init__(self, store: ExpertStore):
        self._store = store
        self.admitted = 0
        self.asked: set[ExpertKey] = set()

    def prefetch(self, keys: Sequence[ExpertKey]) -> int:
        admitted = self._store.prefetch(keys)
        self.asked.update(keys)
        self.admitted += admitted
        return admitted


def always_on(mode: PrefetchMode, trunk: Trunk, store: Any) -> Prefetcher | None:
    experts_per_layer = {layer: len(entry.experts) for layer, entry in trunk.catalog.layers.items()}
    prefetcher = make_prefetcher(mode, store, experts_per_layer, trunk.gates)
    if prefetcher is not None:
        prefetcher._governor = AlwaysOn()
    return prefetcher


def logits_of(trunk: Trunk, host_bytes: int, mode: PrefetchMode) -> tuple[torch.Tensor, int]:
    """Return the logits of some steps of a ragged batch, and the number of admitted prefetches."""
    store = ExpertStore(trunk.catalog, host_bytes)
    counting = CountingStore(store)
    results = generate(trunk, store, steps=12, prefetcher=always_on(mode, trunk, counting), block_size=BLOCK)
    store.check_integrity()
    store.close()
    return torch.stack([logits for _, logits in results]), counting.admitted


@pytest.fixture(scope="module")
def pool() -> Iterator[ComputePool]:
    kernels = Kernels(2) if availability().runnable else None
    yield ComputePool(2, kernels)
    if kernels is not None:
        kernels.close()


@pytest.fixture(scope="module", params=MODELS)
def trunk(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, pool: ComputePool) -> Trunk:
    """A model; the bundled one runs through its modules, the others by native layers where there are kernels."""
    if request.param == "bundled":
        return load_trunk(BUNDLED, torch.float32)
    folder: Path = make_checkpoint(request.param, tmp_path_factory.mktemp(request.param))
    return load_trunk(folder, torch.float32, pool=pool)


@pytest.fixture(scope="module")
def expected(trunk: Trunk) -> torch.Tensor:
    """Return the logits with all experts in memory."""
    return logits_of(trunk, trunk.catalog.total_bytes, "off")[0]


def budgets(trunk: Trunk) -> dict[str, int]:
    catalog = trunk.catalog
    return {
        "least": least_bytes(catalog, trunk.facts.top_k),
        "half": max(catalog.total_bytes // 2, least_bytes(catalog, trunk.facts.top_k)),
    }


@pytest.mark.slow
@pytest.mark.parametrize(("trunk", "mode"), CASES, indirect=["trunk"])
def test_prefetching_changes_no_bit(trunk: Trunk, expected: torch.Tensor, mode: PrefetchMode) -> None:
    for name, host_bytes in budgets(trunk).items():
        logits, admitted = logits_of(trunk, host_bytes, mode)
        assert torch.equal(logits, expected), name
        assert admitted > 0 or name == "least"


def test_every_layer_but_the_last_has_a_gate(trunk: Trunk) -> None:
    assert list(trunk.gates) == list(trunk.catalog.layers)[:-1]


@pytest.mark.slow
def test_a_step_with_a_piece_of_a_prompt_does_not_prefetch(trunk: Trunk) -> None:
    store = ExpertStore(trunk.catalog, trunk.catalog.total_bytes)
    prefetcher = always_on("auto", trunk, store)
    assert prefetcher is not None
    generate(trunk, store, chunk=1, steps=1, prefetcher=prefetcher, block_size=BLOCK)
    decoded = prefetcher.statistics().predicted["gate"]
    generate(trunk, store, chunk=64, steps=1, prefetcher=prefetcher, block_size=BLOCK)
    assert decoded > 0
    # The prompt of one token alone can't be told from a decode, and shares its step with the other prompts.
    assert prefetcher.statistics().predicted["gate"] == decoded
    store.close()


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_a_sequence_with_a_variant_prefetches_the_experts_of_the_variant(
    tmp_path: Path, mode: PrefetchMode, pool: ComputePool
) -> None:
    folder = make_checkpoint("qwen3_moe", tmp_path / "base")
    trunk = load_trunk(folder, torch.float32, pool=pool)
    store = ExpertStore(trunk.catalog, budgets(trunk)["half"])
    replaced = other(read_tensors(folder), lambda name: ".experts." in name and ".experts.0." not in name)
    law = load(store, read(save_variant(tmp_path / "law", replaced), base_of(folder, trunk)))
    counting = CountingStore(store)
    prefetcher = always_on(mode, trunk, counting)
    assert prefetcher is not None
    generate(trunk, store, steps=12, prefetcher=prefetcher, weights=[law] * 3, block_size=BLOCK)
    assert all((key.variant == "law@1") == (key.expert != 0) for key in counting.asked)
    assert counting.asked
    assert sum(prefetcher.statistics().correct.values()) > 0
    store.close()
