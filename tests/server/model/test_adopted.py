"""Experts that transformers has no interface to give what stock gives."""

from __future__ import annotations

import re
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file

from expert_store import ExpertStore, least_bytes
from server.model.kv_cache import KVCache
from server.model.loading import load_trunk
from server.model.step import SequenceChunk
from tests.checkpoints import save_checkpoint
from tests.families import make_config

PROMPT = [5, 17, 99, 3, 42, 8, 64, 23, 11, 90, 90, 12]


def test_experts_that_compute_nothing_give_what_they_are_given(tmp_path: Path) -> None:
    """LongCat's router chooses among 8 experts and 4 of these, of which a checkpoint has no tensors."""
    config = make_config("longcat_flash")
    config.zero_expert_num = 4
    save_checkpoint(config, tmp_path)
    stock = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    with torch.inference_mode():
        expected = stock(torch.tensor([PROMPT]), use_cache=False).logits[0]
    tensors = load_file(tmp_path / "model.safetensors")
    of_nothing = [name for name in tensors if re.search(r"experts\.(8|9|10|11)\.", name)]
    assert of_nothing, "transformers saves rows for them; remove what removes them here"
    kept = {name: tensor for name, tensor in tensors.items() if name not in of_nothing}
    save_file(kept, tmp_path / "model.safetensors", {"format": "pt"})
    trunk = load_trunk(tmp_path, torch.float32)
    store = ExpertStore(trunk.catalog, least_bytes(trunk.catalog, trunk.facts.top_k))
    chunk = SequenceChunk(PROMPT, 0, [[0]], len(PROMPT))
    step = trunk.forward([chunk], KVCache(trunk.facts.kv_groups, [1], 16), store)
    store.close()
    assert max(routing.max() for routing in step.routing.values()) >= 8
    assert float((step.logits - expected).abs().max()) < 1e-5 * float(expected.max() - expected.min())
