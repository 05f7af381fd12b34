"""Rotary embeddings of every kind equal transformers', whatever the length of other sequences in the batch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from expert_store import ExpertStore
from server.model.attention.kv_cache import KVCache
from server.model.checkpoint.read_config import read_config
from server.model.from_config.shapes import infer_shapes
from server.model.step import SequenceChunk
from server.model.trunk_loader import load_trunk
from tests.checkpoints import save_checkpoint
from tests.families import make_config

pytestmark = pytest.mark.slow

BLOCK_SIZE = 16
FIRST_LENGTH = 64  # of the training before positions were scaled
FACTORS = {"short_factor": [1.0, 1.5, 2.0, 3.0], "long_factor": [2.0, 4.0, 8.0, 16.0]}
LONG = {"rope_type": "longrope", "original_max_position_embeddings": FIRST_LENGTH, "factor": 4.0, **FACTORS}
KINDS: dict[str, tuple[str, dict[str, Any], int]] = {  # model type, parameters, the longest sequence
    "linear": ("qwen3_moe", {"rope_type": "linear", "factor": 4.0}, 256),
    "dynamic": ("qwen3_moe", {"rope_type": "dynamic", "factor": 4.0}, 256),
    "dynamic of HunYuan": ("hunyuan_v1_moe", {"rope_type": "dynamic", "factor": 1.0, "alpha": 1000.0}, 256),
    "yarn": (
        "qwen3_moe",
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": FIRST_LENGTH},
        256,
    ),
    "llama3": (
        "mixtral",
        {
            "rope_type": "llama3",
            "factor": 4.0,
            "original_max_position_embeddings": FIRST_LENGTH,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
        },
        256,
    ),
    "partial": ("glm4_moe", {"rope_type": "default", "partial_rotary_factor": 0.5}, 256),
    "longrope": ("qwen3_moe", LONG, FIRST_LENGTH),
    "longrope of PhiMoE": ("phimoe", {**LONG, "short_mscale": 1.2, "long_mscale": 1.4}, FIRST_LENGTH),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_longest_sequence_and_a_short_one_beside_it_have_the_logits_of_transformers(
    kind: str, tmp_path: Path
) -> None:
    model_type, parameters, longest = KINDS[kind]
    config = make_config(model_type)
    config.rope_parameters = {"rope_theta": 10000.0, **parameters}
    save_checkpoint(config, tmp_path)
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    trunk = load_trunk(tmp_path, torch.float32)
    assert trunk.max_model_len == longest
    assert infer_shapes(read_config(tmp_path), torch.float32).max_model_len == longest  # before weights are there
    prompts = [[(7 * place + 3) % 128 for place in range(length)] for length in (longest, 9)]
    expected = []
    for prompt in prompts:
        with torch.inference_mode():
            expected.append(reference(torch.tensor([prompt]), use_cache=False).logits[0])
    store = ExpertStore(trunk.catalog, trunk.catalog.total_bytes)
    blocks = longest // BLOCK_SIZE
    tables = [[list(range(blocks))], [[blocks]]]
    chunks = [SequenceChunk(prompt, 0, table, len(prompt)) for prompt, table in zip(prompts, tables, strict=True)]
    found = trunk.forward(chunks, KVCache(trunk.facts.kv_groups, [blocks + 1], BLOCK_SIZE), store).logits
    store.close()
    for logits, expected_logits in zip(found.split([len(prompt) for prompt in prompts]), expected, strict=True):
        assert float((logits - expected_logits).abs().max()) < 1e-4 * float(
            expected_logits.max() - expected_logits.min()
        )


@pytest.mark.parametrize("is_at_the_top", [False, True])
def test_a_base_that_is_in_a_part_of_the_config_alone_is_taken(is_at_the_top: bool, tmp_path: Path) -> None:
    """As in published DBRX. A config that transformers has written has a base at the top level."""
    config = make_config("dbrx")
    config.attn_config.rope_theta = 500.0
    save_checkpoint(config, tmp_path)
    path = tmp_path / "config.json"
    written = json.loads(path.read_text("utf-8"))
    assert written["rope_parameters"]["rope_theta"] == 10000.0
    if not is_at_the_top:
        del written["rope_parameters"]
        path.write_text(json.dumps(written))
    config.rope_parameters["rope_theta"] = 10000.0 if is_at_the_top else 500.0
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, config=config, dtype=torch.float32)
    trunk = load_trunk(tmp_path, torch.float32)
    store = ExpertStore(trunk.catalog, trunk.catalog.total_bytes)
    tokens = list(range(3, 3 + BLOCK_SIZE))
    cache = KVCache(trunk.facts.kv_groups, [1], BLOCK_SIZE)
    found = trunk.forward([SequenceChunk(tokens, 0, [[0]], len(tokens))], cache, store).logits
    store.close()
    with torch.inference_mode():
        expected = reference(torch.tensor([tokens]), use_cache=False).logits[0]
    assert float((found - expected).abs().max()) < 1e-5 * float(expected.max() - expected.min())


@pytest.mark.parametrize("kind", ["longrope", "longrope of PhiMoE"])
def test_longer_sequences_that_are_asked_for_have_the_logits_of_transformers_in_any_pieces(
    kind: str, tmp_path: Path
) -> None:
    """Beginnings within the length of the first set of frequencies use the second one, and so do short sequences."""
    model_type, parameters, first_length = KINDS[kind]
    config = make_config(model_type)
    config.rope_parameters = {"rope_theta": 10000.0, **parameters}
    save_checkpoint(config, tmp_path)
    trunk = load_trunk(tmp_path, torch.float32, max_model_len=first_length + 1)
    longest = config.max_position_embeddings
    assert trunk.max_model_len == longest
    assert infer_shapes(read_config(tmp_path), torch.float32, first_length + 1).max_model_len == longest
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    prompt = [(7 * place + 3) % 128 for place in range(longest)]
    with torch.inference_mode():
        expected = reference(torch.tensor([prompt]), use_cache=False).logits[0]
    store = ExpertStore(trunk.catalog, trunk.catalog.total_bytes)
    blocks, found = longest // BLOCK_SIZE, []
    cache = KVCache(trunk.facts.kv_groups, [blocks + 1], BLOCK_SIZE)
    for start, end in ((0, 30), (30, 31), (31, longest)):
        chunks = [SequenceChunk(prompt[start:end], start, [[*range(blocks)]], end - start)]
        chunks += [SequenceChunk([5, 6, 7], 0, [[blocks]], 0)]
        found.append(trunk.forward(chunks, cache, store).logits)
    store.close()
    assert float((torch.cat(found) - expected).abs().max()) < 1e-4 * float(expected.max() - expected.min())
