"""A shard that ends early, wherever it ends, is refused by name before a byte of its data is read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from expert_store import CheckpointError
from expert_store.sources.base import PAGE_BYTES
from server.model.trunk_loader import load_trunk
from tests.checkpoints import make_checkpoint
from tests.e2e.processes import run_command

pytestmark = pytest.mark.slow


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    return make_checkpoint("qwen3_moe", tmp_path / "tiny") / "model.safetensors"


def test_every_length_but_the_whole_is_refused(shard: Path) -> None:
    whole = shard.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    lengths = {0, 1, 7, 8, 9, header // 2, header - 1, header, header + 1, len(whole) - 1}
    for length in sorted(lengths | set(range(0, len(whole), PAGE_BYTES))):
        shard.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"model\.safetensors"):
            load_trunk(shard.parent, torch.float32)


def test_the_command_ends_in_one_line(shard: Path) -> None:
    shard.write_bytes(shard.read_bytes()[: 2 * PAGE_BYTES])
    result = run_command("serve", str(shard.parent), "--port", "0")
    assert (result.returncode, result.stdout) == (1, "")
    assert "model.safetensors" in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr
