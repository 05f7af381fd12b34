"""Multi-head latent attention keeps latents, and equals transformers' attention to expanded keys and values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from expert_store import ExpertStore
from server.model.attention.kv_cache import KVCache
from server.model.modules import linear
from server.model.step import SequenceChunk
from server.model.trunk.trunk import Trunk
from server.model.trunk_loader import load_trunk
from tests.checkpoints import LATENT, save_checkpoint

pytestmark = pytest.mark.slow

FAMILIES: dict[str, Any] = {
    "deepseek_v2": lambda: transformers.DeepseekV2Config(**LATENT, topk_method="greedy"),
    "deepseek_v3": lambda: transformers.DeepseekV3Config(**LATENT, n_group=2, topk_group=1),
    "deepseek_v3_halves": lambda: transformers.DeepseekV3Config(
        **{**LATENT, "q_lora_rank": None}, n_group=2, topk_group=1, rope_interleave=False
    ),
    "glm4_moe_lite": lambda: transformers.Glm4MoeLiteConfig(**LATENT, n_group=1, topk_group=1),
    "axk1": lambda: transformers.AXK1Config(**LATENT, n_group=2, topk_group=1),
}
RANK, ROTATED = LATENT["kv_lora_rank"], LATENT["qk_rope_head_dim"]
PROMPT = [5, 17, 99, 3, 42, 8, 64, 23, 11, 90, 90, 12, 13, 14]
TABLE = [2, 3, 0, 1]


@pytest.fixture(scope="module", params=FAMILIES)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(FAMILIES[request.param](), tmp_path_factory.mktemp(request.param))


def logits_of(trunk: Trunk, lengths: tuple[int, ...]) -> torch.Tensor:
    """Return the logits of the prompt, in chunks of these lengths."""
    store = ExpertStore(trunk.catalog, trunk.catalog.total_bytes)
    cache, rows, first = KVCache(trunk.facts.kv_groups, [4], 4), [], 0
    for length in lengths:
        chunk = SequenceChunk(PROMPT[first : first + length], first, [TABLE], length)
        rows.append(trunk.forward([chunk], cache, store).logits)
        first += length
    store.close()
    return torch.cat(rows)


def test_logits_equal_transformers_whatever_the_chunks(checkpoint: Path) -> None:
    reference = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    with torch.inference_mode():
        expected = reference(torch.tensor([PROMPT]), use_cache=False).logits[0]
    trunk = load_trunk(checkpoint, torch.float32)
    for lengths in ((14,), (5, 1, 1, 6, 1), (1,) * 14):
        found = logits_of(trunk, lengths)
        assert float((found - expected).abs().max()) < 1e-5 * float(expected.max() - expected.min())


def test_what_is_kept_of_a_token_is_its_latent_and_one_rotated_key(checkpoint: Path) -> None:
    trunk = load_trunk(checkpoint, torch.float32)
    layers = LATENT["num_hidden_layers"]
    assert trunk.facts.token_bytes == layers * (RANK + ROTATED) * 4
    (group,) = trunk.facts.kv_groups
    assert all(shape.is_latent for shape in group.shapes.values())
    cache = KVCache([group], [2], 4)
    assert all(layer.values is layer.keys for layer in cache.layers.values())


def test_latents_are_kept_also_of_models_large_enough_for_fast_linear_layers(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear, "LEAST_WEIGHTS", 1)
    [group] = load_trunk(checkpoint, torch.float32).facts.kv_groups
    assert all(shape.is_latent for shape in group.shapes.values())


def test_16_bits_choose_the_same_tokens_nearly_always(checkpoint: Path) -> None:
    """Absorbed products round differently, and no more."""
    exact = logits_of(load_trunk(checkpoint, torch.float32), (14,))
    found = logits_of(load_trunk(checkpoint, torch.bfloat16), (5, 1, 8))
    assert float((found - exact).abs().mean()) < 0.03 * float(exact.max() - exact.min())


def test_a_layer_that_does_more_to_its_keys_keeps_them_as_they_are(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys that are not the expanded latent alone can't be had from the latent."""
    config = transformers.AutoConfig.from_pretrained(checkpoint)
    transformers_class = transformers.AutoModelForCausalLM._model_mapping[type(config)]
    attention_class = type(
        next(m for m in transformers_class(config).modules() if hasattr(m, "kv_b_proj") and hasattr(m, "expand_kv"))
    )
    plain = attention_class.expand_kv

    def normed(self: Any, latent: torch.Tensor, rotated: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        key, value = plain(self, latent, rotated)
        return key / key.norm(dim=-1, keepdim=True), value

    monkeypatch.setattr(attention_class, "expand_kv", normed)
    reference = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    with torch.inference_mode():
        expected = reference(torch.tensor([PROMPT]), use_cache=False).logits[0]
    trunk = load_trunk(checkpoint, torch.float32)
    assert not any(shape.is_latent for group in trunk.facts.kv_groups for shape in group.shapes.values())
    found = logits_of(trunk, (5, 1, 8))
    assert float((found - expected).abs().max()) < 1e-5 * float(expected.max() - expected.min())
