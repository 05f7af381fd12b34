"""Native attention to more keys than one part has: threads and company change no bit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

from expert_store import ExpertStore
from server.kernels.compute_pool import ComputePool
from server.kernels.native.available import availability
from server.kernels.native.library import Kernels
from server.model.trunk.trunk import Trunk
from server.model.trunk_loader import load_trunk
from tests.checkpoints import save_checkpoint
from tests.families import make_config
from tests.server.model.test_parity import generate

LENGTH = 1100  # tokens, of which the native attention takes 512 at a time
LONG, SHORT = [[(place * step) % 90 + 1 for place in range(LENGTH)] for step in (7, 11)]
COMPANY = [LONG, SHORT[:5], SHORT, *[SHORT[:place] for place in range(20, 32)]]  # more tiles than threads take apart
STEPS = 2

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not availability().runnable, reason="the native kernels were not built"),
]

Written = tuple[list[int], torch.Tensor]


def load(folder: Path, pool: ComputePool | None) -> Trunk:
    trunk = load_trunk(folder, torch.float32, pool=pool)
    assert isinstance(trunk, Trunk)
    return trunk


def write_first(trunk: Trunk, prompts: Sequence[list[int]], chunk: int = LENGTH) -> Written:
    """Return what the first prompt is continued with."""
    store = ExpertStore(trunk.catalog, trunk.catalog.total_bytes)
    try:
        return generate(trunk, store, chunk, STEPS, block_size=16, prompts=prompts)[0]
    finally:
        store.close()


@pytest.fixture(scope="module", params=["qwen3_moe", "gpt_oss", "deepseek_v3", "deepseek_v4"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = make_config(request.param)
    config.max_position_embeddings = 2 * LENGTH
    return save_checkpoint(config, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def native(folder: Path) -> Iterator[Trunk]:
    kernels = Kernels(2)
    yield load(folder, ComputePool(2, kernels))
    kernels.close()


@pytest.fixture(scope="module")
def alone(native: Trunk) -> Written:
    return write_first(native, [LONG])


def test_a_long_context_gives_what_the_modules_give(folder: Path, alone: Written) -> None:
    tokens, logits = write_first(load(folder, None), [LONG])
    assert alone[0] == tokens
    assert (alone[1] - logits).abs().max() <= 1e-5 * (logits.max() - logits.min())


def test_company_changes_no_bit_of_a_long_context(native: Trunk, alone: Written) -> None:
    assert torch.equal(write_first(native, COMPANY)[1], alone[1])


def test_chunks_change_no_bit_of_a_long_context(native: Trunk, alone: Written) -> None:
    assert torch.equal(write_first(native, [LONG], chunk=400)[1], alone[1])


def test_threads_change_no_bit_of_a_long_context(folder: Path, alone: Written) -> None:
    """Three and two."""
    kernels = Kernels(3)
    found = write_first(load(folder, ComputePool(3, kernels)), [LONG])
    kernels.close()
    assert torch.equal(found[1], alone[1])
