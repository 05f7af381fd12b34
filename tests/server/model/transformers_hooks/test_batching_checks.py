"""Models that can't run many sequences in one step are detected, and run one sequence at a time."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import masking_utils

from expert_store import ExpertStore
from server.model.attention.kv_cache import KVCache
from server.model.sequential.sequential_trunk import SequentialTrunk
from server.model.step import SequenceChunk
from server.model.trunk_loader import load_trunk
from tests.checkpoints import COMMON, save_checkpoint
from tests.families import make_config

PROMPT = [5, 17, 99, 3, 42, 8, 64, 23, 11, 90, 90, 12]


def logits_in_pieces(trunk: SequentialTrunk, size: int) -> torch.Tensor:
    """Return the logits of the prompt's tokens, run some at a time, ``(tokens, vocabulary)``."""
    store = ExpertStore(trunk.catalog, trunk.catalog.total_bytes)
    cache, states = KVCache(trunk.facts.kv_groups, [1] * len(trunk.facts.kv_groups), 16), trunk.new_states(1)
    rows = []
    for first in range(0, len(PROMPT), size):
        tokens = PROMPT[first : first + size]
        rows.append(trunk.forward([SequenceChunk(tokens, first, [], len(tokens))], cache, store, states=states).logits)
    store.close()
    return torch.cat(rows)


def equals_transformers(logits: torch.Tensor, folder: Path) -> bool:
    reference = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        expected = reference(torch.tensor([PROMPT]), use_cache=False).logits[0]
    return float((logits - expected).abs().max()) < 1e-5 * float(expected.max() - expected.min())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen3_next", "minimax", "nemotron_h"])
def test_tokens_that_mix_outside_of_attention_are_found_without_a_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Layers may keep a hidden state of a sequence; then each sequence runs by itself."""
    save_checkpoint(make_config(name), tmp_path)
    monkeypatch.setattr("server.model.recurrent.recurrent_modules.StateProbe._record", lambda self, key: None)
    caplog.set_level("INFO")
    trunk = load_trunk(tmp_path, torch.float32)
    assert isinstance(trunk, SequentialTrunk)
    (message,) = [record.getMessage() for record in caplog.records if "run one at a time" in record.getMessage()]
    assert re.search(r"mixes tokens outside of its attention \(.*layers\.[01]\.", message)
    assert equals_transformers(logits_in_pieces(trunk, 5), tmp_path)


def mixtral_with_masks(monkeypatch: pytest.MonkeyPatch, folder: Path, make: Any) -> Path:
    """Save a model whose masks are made by another function, unlike its config."""
    config = transformers.MixtralConfig(
        **COMMON, intermediate_size=24, num_local_experts=4, num_experts_per_tok=2, sliding_window=None
    )
    monkeypatch.setattr("transformers.models.mixtral.modeling_mixtral.create_causal_mask", make)
    return save_checkpoint(config, folder)


def test_a_mask_by_another_rule_is_left_to_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For example where the first tokens, of an image, see each other in both directions."""
    first_tokens = partial(masking_utils.create_causal_mask, or_mask_function=lambda _b, _h, _q, key: key < 3)
    folder = mixtral_with_masks(monkeypatch, tmp_path, first_tokens)
    trunk = load_trunk(folder, torch.float32)
    assert "by a rule other than causality and a sliding window or chunks" in str(trunk.facts.program.sequential_reason)
    assert isinstance(trunk, SequentialTrunk)
    assert equals_transformers(logits_in_pieces(trunk, 5), tmp_path)


def test_chunks_that_are_in_the_mask_alone_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = mixtral_with_masks(monkeypatch, tmp_path, masking_utils.create_chunked_causal_mask)
    monkeypatch.setattr(transformers.MixtralConfig, "attention_chunk_size", 4, raising=False)
    trunk = load_trunk(folder, torch.float32)
    assert [(group.window, group.is_chunked) for group in trunk.facts.kv_groups] == [(4, True)]


def test_a_window_that_is_in_the_mask_alone_is_found(tmp_path: Path) -> None:
    """PhiMoE does not pass its window to attention."""
    config = transformers.PhimoeConfig(
        **COMMON, intermediate_size=24, num_local_experts=4, num_experts_per_tok=2, sliding_window=5
    )
    save_checkpoint(config, tmp_path)
    trunk = load_trunk(tmp_path, torch.float32)
    assert [group.window for group in trunk.facts.kv_groups] == [5]
    store = ExpertStore(trunk.catalog, trunk.catalog.total_bytes)
    chunk = SequenceChunk(PROMPT, 0, [[0]], len(PROMPT))
    found = trunk.forward([chunk], KVCache(trunk.facts.kv_groups, [1], 16), store).logits
    store.close()
    assert equals_transformers(found, tmp_path)
