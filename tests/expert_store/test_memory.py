"""A store takes its budget and a constant, measured from outside its process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import save_file

pytestmark = pytest.mark.slow

MIB = 1 << 20
CONSTANT_BYTES = 24 * MIB  # stacks and bounce buffers of readers, bookkeeping, and what the allocator keeps

PROGRAM = """
import sys
from pathlib import Path
from expert_store import (
    ExpertCatalog, ExpertKey, ExpertLayout, ExpertStore, LayerEntry, ParameterRecipe, ParameterSpec, find_shards,
    read_index,
)

index = read_index(find_shards(Path(sys.argv[1])))
layout = ExpertLayout((ParameterSpec("weight", next(iter(index.values())).dtype, (512, 1024)),))
experts = tuple({"weight": ParameterRecipe((index[str(expert)],))} for expert in range(len(index)))
catalog = ExpertCatalog({0: LayerEntry(layout, experts)})

def read_all(store):
    for _ in range(3):
        with store.lease({ExpertKey(0, expert): 1 for expert in range(len(index))}) as lease:
            for _ in lease:
                pass

warm = ExpertStore(catalog, layout.slot_bytes)
read_all(warm)
warm.close()
store = None
print("ready", flush=True)
for line in sys.stdin:
    host_bytes, device_bytes = map(int, line.split())
    if store is None:
        store = ExpertStore(catalog, host_bytes, device_bytes=device_bytes)
    else:
        store.resize(host_bytes=host_bytes, device_bytes=device_bytes or None)
    read_all(store)
    print("done", flush=True)
"""


class Process:
    """A process with one store, which reads budgets line by line."""

    def __init__(self, folder: Path):
        self._process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._read("ready")
        self._before = self.resident_bytes

    @property
    def resident_bytes(self) -> int:
        return int(psutil.Process(self._process.pid).memory_info().rss)

    def growth(self, host_bytes: int, device_bytes: int) -> int:
        """Return the resident bytes beyond the start, after all experts were loaded into a store of these budgets."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{host_bytes} {device_bytes}\n")
        self._process.stdin.flush()
        self._read("done")
        return self.resident_bytes - self._before

    def close(self) -> None:
        self._process.communicate(timeout=30)
        assert self._process.returncode == 0

    def _read(self, expected: str) -> None:
        assert self._process.stdout is not None
        assert self._process.stdout.readline().strip() == expected


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """128 experts of one mebibyte."""
    folder = tmp_path_factory.mktemp("experts")
    save_file({str(expert): torch.rand(512, 1024).bfloat16() for expert in range(128)}, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("device_mib", [0, 16])
def test_resident_memory_follows_the_budget_up_and_down(folder: Path, device_mib: int) -> None:
    process = Process(folder)
    growths = {mib: process.growth(mib * MIB, device_mib * MIB) for mib in (40, 100, 12)}
    process.close()
    for mib, growth in growths.items():
        assert growth <= (mib + device_mib) * MIB + CONSTANT_BYTES, json.dumps(growths)
    assert growths[100] > 100 * MIB * 0.9
