"""Paging never changes one bit of the bundled model's answer."""

from __future__ import annotations

import pytest
import torch
import transformers

from expert_store import ExpertStore
from server.model.attention.kv_cache import KVCache
from server.model.checkpoint.folder_checkpoint import FolderCheckpoint
from server.model.checkpoint.locate import BUNDLED
from server.model.checkpoint.read_config import read_config
from server.model.dtype import compute_dtype
from server.model.step import SequenceChunk
from server.model.text.chat_template import ChatEnd
from server.model.text.tokenizer import Tokenizer
from server.model.trunk.trunk import Trunk
from server.model.trunk_loader import load_trunk

PROMPTS = ["Once upon a time there was a", "def main(", "Section 1-204. The Mayor shall"]
STEPS = 24
NUM_BLOCKS, BLOCK_SIZE = 4, 32


@pytest.fixture(scope="module")
def trunk() -> Trunk:
    return load_trunk(BUNDLED, compute_dtype("auto", read_config(BUNDLED), torch.device("cpu")))


def logits_of(trunk: Trunk, share: float) -> tuple[torch.Tensor, int]:
    """Logits of some greedy steps over a ragged batch, and how many experts came from disk."""
    store = ExpertStore(trunk.catalog, int(share * trunk.catalog.total_bytes))
    cache = KVCache(trunk.facts.kv_groups, [NUM_BLOCKS * len(PROMPTS)], BLOCK_SIZE)
    tables = [list(range(NUM_BLOCKS * i, NUM_BLOCKS * (i + 1))) for i in range(len(PROMPTS))]
    new = [Tokenizer(FolderCheckpoint(BUNDLED)).encode(prompt) for prompt in PROMPTS]
    cached = [0] * len(PROMPTS)
    rows = []
    for _ in range(STEPS):
        chunks = [
            SequenceChunk(tokens, first, [table]) for tokens, first, table in zip(new, cached, tables, strict=True)
        ]
        rows.append(trunk.forward(chunks, cache, store).logits)
        cached = [count + len(tokens) for count, tokens in zip(cached, new, strict=True)]
        new = [[int(token)] for token in rows[-1].argmax(-1)]
    store.close()
    statistics = store.statistics()
    return torch.stack(rows), sum(count for (tier, _), count in statistics.lookups.items() if tier == "disk")


@pytest.mark.slow
def test_every_budget_gives_the_same_bits(trunk: Trunk) -> None:
    whole, loads = logits_of(trunk, 1.0)
    assert loads <= 96
    for share in (0.15, 0.5):
        paged, paged_loads = logits_of(trunk, share)
        assert torch.equal(paged, whole)
        assert paged_loads > loads


def test_the_bundled_model_loads_in_transformers() -> None:
    """Transformers loads it, with every tensor in its place, and renders a chat as in its training."""
    model, info = transformers.AutoModelForCausalLM.from_pretrained(BUNDLED, output_loading_info=True)
    assert type(model) is transformers.Qwen3MoeForCausalLM
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert 10e6 <= sum(parameter.numel() for parameter in model.parameters()) <= 14e6
    assert model.config.num_experts >= 16
    assert model.config.num_hidden_layers >= 6
    tokenizer = transformers.AutoTokenizer.from_pretrained(BUNDLED)
    messages = [{"role": "user", "content": "Hi"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == "<|endoftext|><|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("text", ["Sure", "Sure, "])
def test_a_last_message_is_left_open_as_by_transformers(text: str) -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": text}]
    expected = transformers.AutoTokenizer.from_pretrained(BUNDLED).apply_chat_template(
        messages, continue_final_message=True, return_dict=False
    )
    end = ChatEnd(add_generation_prompt=False, continue_final_message=True)
    assert Tokenizer(FolderCheckpoint(BUNDLED)).encode_chat(messages, end=end) == expected


def test_the_bundled_model_fits_the_repository() -> None:
    assert sum(path.stat().st_size for path in BUNDLED.parent.rglob("*") if path.is_file()) < 30e6
