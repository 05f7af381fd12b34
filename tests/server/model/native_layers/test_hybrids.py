"""Models whose attention and experts run natively around mixers that are modules have the results of modules alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from server.kernels.compute_pool import ComputePool
from server.kernels.native.available import availability
from server.model.blocks.grouped_attention.parts import GroupedAttentionParts
from server.model.blocks.latent_attention.parts import LatentAttentionParts
from server.model.blocks.module.parts import ModuleParts
from server.model.recognition import find_parts as parts
from server.model.trunk.trunk import Trunk
from server.model.trunk_loader import load_trunk
from tests.checkpoints import make_checkpoint
from tests.server.model.native_layers.test_native_layers import TOLERANCE, load, write
from tests.server.model.test_parity import PROMPTS

HYBRIDS = ("bailing_hybrid", "jamba", "kimi_linear")

KINDS = (GroupedAttentionParts, LatentAttentionParts, ModuleParts)  # as if the kernels had no recurrent mixers

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not availability().runnable, reason="the native kernels were not built"),
]


@pytest.fixture(autouse=True)
def known_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "MIXERS", KINDS)


def load_hybrid(folder: Path, pool: ComputePool, *, is_deterministic: bool = False) -> Trunk:
    trunk = load_trunk(folder, torch.float32, is_deterministic=is_deterministic, pool=pool)
    assert isinstance(trunk, Trunk)
    assert trunk.facts.program.is_hybrid, trunk.facts.program.describe()
    return trunk


@pytest.mark.parametrize("name", HYBRIDS)
@pytest.mark.parametrize("share", [0, 1])
def test_hybrids_give_what_modules_give(name: str, tmp_path: Path, pool: ComputePool, share: int) -> None:
    folder = make_checkpoint(name, tmp_path)
    found, expected = write(load_hybrid(folder, pool), share=share), write(load(folder, None))
    for (tokens, logits), (wanted_tokens, wanted) in zip(found, expected, strict=True):
        assert tokens == wanted_tokens
        assert (logits - wanted).abs().max() <= TOLERANCE * (wanted.max() - wanted.min())


def test_hybrids_in_bfloat16_are_no_further_from_float32_than_modules(tmp_path: Path, pool: ComputePool) -> None:
    """The residual stream stays in float32 across the border to modules."""
    folder = make_checkpoint("jamba", tmp_path, torch.bfloat16)
    prompts, truth = PROMPTS[:1], load(folder, None)
    ((_, wanted),) = write(truth, prompts)
    errors = [
        float((write(load(folder, each, torch.bfloat16), prompts)[0][1][0] - wanted[0]).norm()) for each in (pool, None)
    ]
    assert errors[0] <= errors[1]


@pytest.mark.parametrize("name", HYBRIDS)
def test_other_sequences_change_no_bit_of_deterministic_hybrids(name: str, tmp_path: Path, pool: ComputePool) -> None:
    trunk = load_hybrid(make_checkpoint(name, tmp_path), pool, is_deterministic=True)
    together = write(trunk)
    for prompt, (tokens, logits) in zip(PROMPTS, together, strict=True):
        ((alone_tokens, alone),) = write(trunk, [prompt])
        assert tokens == alone_tokens
        assert torch.equal(logits, alone)
