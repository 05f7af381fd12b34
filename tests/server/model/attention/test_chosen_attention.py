"""Indexers that run as modules choose keys in the paged KV cache, and tokens attend to what they choose."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from server.model.attention import chosen_attention
from server.model.attention.chosen_attention import ChosenAttention
from server.model.attention.key_choice import KeyChoice, causal_mask
from server.model.attention.kv_cache import KVCache, KVShape, group_layers
from server.model.hooks import AttentionOptions
from server.model.step import SequenceChunk
from server.model.transformers_hooks.probe import attend_sequence
from server.model.trunk.trunk import Trunk
from server.model.trunk_loader import load_trunk
from tests.checkpoints import make_checkpoint
from tests.server.model.attention.step_checks import check_blocks_of_another, check_company_and_chunks

BLOCK, LAYER, HEADS, KV_HEADS, DIM = 16, 0, 4, 2, 8
LENGTHS = 84, 5  # tokens of each sequence
TABLES = [9, 1, 4, 0, 7, 2], [3]


@pytest.fixture(autouse=True)
def few_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute the scores of a prompt in several pieces."""
    monkeypatch.setattr(chosen_attention, "MOST_SCORES", 1000)


@pytest.mark.parametrize("num_choosers", [1, KV_HEADS])
@pytest.mark.parametrize("has_sinks", [False, True])
@pytest.mark.parametrize("num_cached", [0, 30])
def test_tokens_attend_to_the_keys_that_were_chosen_for_them(
    num_choosers: int, has_sinks: bool, num_cached: int
) -> None:
    random = torch.Generator().manual_seed(0)
    groups = group_layers({LAYER: KVShape(KV_HEADS, DIM, DIM, torch.float32)}, {LAYER: None})
    cache = KVCache(groups, [10], BLOCK)
    options = AttentionOptions(0.3, sinks=torch.rand(HEADS, generator=random) if has_sinks else None)
    numbers = [
        [torch.randn((heads, count, DIM), generator=random) for heads in (HEADS, KV_HEADS, KV_HEADS)]
        for count in LENGTHS
    ]
    masks = []
    for count in LENGTHS:
        chosen = torch.rand((num_choosers, count, count), generator=random) < 0.3
        masks.append((chosen | torch.eye(count, dtype=torch.bool)) & causal_mask(count, 0, count))
    ends = [(0, num_cached), (num_cached, LENGTHS[0])] if num_cached else [(0, LENGTHS[0])]
    found = []
    for number, (first, end) in enumerate(ends):  # the second sequence is beside the last piece of the first
        parts = [(0, first, end)] + ([(1, 0, LENGTHS[1])] if number == len(ends) - 1 else [])
        chunks = [SequenceChunk([0] * (to - start), start, [TABLES[index]]) for index, start, to in parts]
        rows = [torch.cat([numbers[index][kind][:, start:to] for index, start, to in parts], 1) for kind in range(3)]
        choice = KeyChoice([masks[index][:, start:to, :to] for index, start, to in parts])
        chosen_options = replace(options, chosen=choice)
        found.append(ChosenAttention(chunks, cache).attend(LAYER, rows[0], rows[1], rows[2], chosen_options))
    whole = [
        attend_sequence(query, key, value, replace(options, chosen=KeyChoice([mask])))
        for (query, key, value), mask in zip(numbers, masks, strict=True)
    ]
    torch.testing.assert_close(torch.cat(found), torch.cat(whole), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["axk2", "hy_v4", "minimax_m3_vl_text"])
def test_a_sequence_continues_from_blocks_of_another(family: str, tmp_path: Path) -> None:
    """Their index states are in the blocks, too."""
    trunk = load_trunk(make_checkpoint(family, tmp_path), torch.float32)
    assert isinstance(trunk, Trunk)
    assert trunk.facts.program.sequential_reason is None
    check_blocks_of_another(trunk)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["axk2", "glm5_next", "minimax_m3_vl_text"])
def test_company_and_chunks_change_only_rounding(family: str, tmp_path: Path) -> None:
    trunk = load_trunk(make_checkpoint(family, tmp_path), torch.float32)
    assert isinstance(trunk, Trunk)
    check_company_and_chunks(trunk)
