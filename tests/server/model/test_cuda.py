"""Trunk, KV cache and device tier on a CUDA device."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from expert_store import ExpertStore, least_bytes
from server.kernels.compute_pool import ComputePool
from server.model.attention.kv_cache import KVCache
from server.model.step import SequenceChunk
from server.model.trunk_loader import load_trunk
from tests.checkpoints import CONFIGS, make_checkpoint

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


WITH_TRITON = ("deepseek_v3", "gpt_oss")  # a latent; sinks, windows and biases


@pytest.mark.parametrize(
    ("name", "with_triton"), [*((name, False) for name in CONFIGS), *((name, True) for name in WITH_TRITON)]
)
def test_a_cuda_device_has_the_logits_of_the_cpu(name: str, tmp_path: Path, *, with_triton: bool) -> None:
    folder = make_checkpoint(name, tmp_path)
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
            logits.append(trunk.forward([chunk], cache, store).logits)
        results.append(torch.cat(logits))
        store.check_integrity()
        store.close()
    span = float(results[0].max() - results[0].min())
    assert float((results[1] - results[0]).abs().max()) < 1e-3 * span
    assert torch.equal(results[1], results[2])
