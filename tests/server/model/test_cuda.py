"""Trunk, KV cache and device tier on a CUDA device."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from expert_store import ExpertStore, least_bytes
from server.engine.runner import PagedModelRunner
from server.kernels.compute_pool import ComputePool
from server.kernels.current_device import current_device
from server.kernels.native.library import Kernels
from server.model.attention.kv_cache import KVCache
from server.model.modules.step_graphs import _CutGraph
from server.model.step import SequenceChunk
from server.model.trunk.trunk import Trunk
from server.model.trunk_loader import load_trunk
from tests.checkpoints import CONFIGS, make_checkpoint, save_checkpoint
from tests.expert_store.waiting import wait_until_idle
from tests.families import make_small_config

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


WITH_TRITON = ("deepseek_v3", "gpt_oss")  # a latent; sinks, windows and biases
DEVICE = torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("name", "with_triton"), [*((name, False) for name in CONFIGS), *((name, True) for name in WITH_TRITON)]
)
def test_a_cuda_device_has_the_logits_of_the_cpu(name: str, tmp_path: Path, *, with_triton: bool) -> None:
    folder = save_checkpoint(make_small_config(name), tmp_path) if with_triton else make_checkpoint(name, tmp_path)
    results = []
    for device, device_slots in (("cpu", 0), ("cuda:0", 3), ("cuda:0", 64)):
        cuda = torch.device(device) if with_triton and device != "cpu" else None
        trunk = load_trunk(folder, torch.float32, torch.device(device), pool=ComputePool(1, triton_device=cuda))
        store = ExpertStore(
            trunk.catalog,
            least_bytes(trunk.catalog, 5),
            device_bytes=least_bytes(trunk.catalog, device_slots),
            device=torch.device(device),
        )
        groups = trunk.facts.kv_groups
        cache = KVCache(groups, [8] * len(groups), 4, torch.device(device))
        logits = []
        for first, length in ((0, 6), (6, 1), (7, 1)):
            chunk = SequenceChunk([7 * (first + i) % 128 for i in range(length)], first, [[3, 1, 2]] * len(groups))
            logits.append(trunk.forward([chunk], cache, store).logits.cpu())
        results.append(torch.cat(logits))
        store.check_integrity()
        store.close()
    span = float(results[0].max() - results[0].min())
    assert float((results[1] - results[0]).abs().max()) < 1e-3 * span
    assert torch.equal(results[1], results[2])


def decode(
    trunk: Trunk, num_steps: int = 3, *, left_after: int | None = None, slots: int | None = None
) -> torch.Tensor:
    """Return the logits of a step of two prompts and steps that follow; some experts leave the device after one.

    Args:
        slots: of the device for experts; enough for all by default.
    """
    total = trunk.catalog.total_bytes
    device_bytes = total if slots is None else least_bytes(trunk.catalog, slots)
    store = ExpertStore(trunk.catalog, total, device_bytes=device_bytes, device=trunk.device)
    groups = trunk.facts.kv_groups
    cache, logits = KVCache(groups, [8] * len(groups), 4, trunk.device), []
    runner = PagedModelRunner(trunk, cache, store, states=trunk.new_states(2))
    for layer in trunk.catalog.layers:
        with store.lease(dict.fromkeys(store._state.keys[layer], 1)) as lease:
            list(lease)
    for step in range(num_steps):
        wait_until_idle(store)
        length = 1 if step else 3
        chunks = [
            SequenceChunk(
                [(5 * step + row + i) % 120 for i in range(length)],
                step + 2 * bool(step),
                [table] * len(groups),
                slot=row,
            )
            for row, table in enumerate(([3, 1], [5, 4]))
        ]
        logits.append(runner.run(chunks).logits.cpu())
        if step == left_after:
            store.evict(store._state.keys[max(trunk.catalog.layers)][:5])
    store.check_integrity()
    store.close()
    return torch.cat(logits)


def load(name: str, folder: Path, device: torch.device = DEVICE) -> Trunk:
    model = save_checkpoint(make_small_config(name), folder)
    with current_device(device):
        trunk = load_trunk(model, torch.float32, device, pool=ComputePool(1, triton_device=device))
    assert isinstance(trunk, Trunk)
    return trunk


@pytest.mark.parametrize(
    ("name", "slots"), [("gpt_oss", None), ("qwen3_next", None), ("deepseek_v3", 5), ("lfm2_moe", 5)]
)
def test_steps_of_graphs_have_the_logits_of_steps_without(name: str, slots: int | None, tmp_path: Path) -> None:
    trunk = load(name, tmp_path)
    assert trunk.module_steps.graphs is not None
    found = decode(trunk, 5, left_after=2, slots=slots)
    kinds = [(type(graph).__name__, graph.is_captured) for graph in trunk.module_steps.graphs._graphs.values()]
    assert ("_StepGraph" if slots is None else "_CutGraph", True) in kinds
    trunk.module_steps.graphs = None
    assert torch.equal(found, decode(trunk, 5, left_after=2))


def test_missed_experts_that_the_cpu_computes_are_near_those_of_the_device(tmp_path: Path) -> None:
    trunk = load("gpt_oss", tmp_path)
    expected = decode(trunk)
    trunk.place_misses("cpu", Kernels(1))
    assert trunk.module_steps.graphs is not None
    found = decode(trunk, slots=5)
    assert any(
        isinstance(graph, _CutGraph) and graph.is_captured for graph in trunk.module_steps.graphs._graphs.values()
    )
    assert float((found - expected).abs().max()) < 1e-4 * float(expected.abs().max())


def test_a_model_that_reads_the_device_in_a_step_runs_without_graphs(tmp_path: Path) -> None:
    trunk = load("qwen3_moe", tmp_path)
    graphs = trunk.module_steps.graphs
    assert graphs is not None

    def read(*_: object) -> None:
        torch.ones(1, device=DEVICE).cpu()

    trunk._model.model.register_forward_hook(read)
    found = decode(trunk)
    assert graphs._is_off
    trunk.module_steps.graphs = None
    assert torch.equal(found, decode(trunk))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device")
def test_a_second_device_has_the_logits_of_the_first(tmp_path: Path) -> None:
    first, second = (load("qwen3_moe", tmp_path / str(n), torch.device("cuda", n)) for n in (0, 1))
    assert second.module_steps.graphs is not None
    assert torch.equal(decode(first), decode(second))
