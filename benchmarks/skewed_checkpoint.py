"""Large random checkpoint whose routing is skewed and persistent, as in trained models.

Random weights route almost uniformly, so the hit ratio of any cache would equal its share of the experts. This
checkpoint differs in three ways: embeddings of tokens of a topic share a direction, the rows of a router differ in
length (Zipf), and each layer adds little to the residual stream, so that the choices of layers are correlated.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from transformers import Qwen3MoeConfig

from benchmarks.checkpoint_writer import Tensors, layer_matrices, layer_norms, write_checkpoint

CONFIG = {
    "vocab_size": 1024,
    "hidden_size": 1024,
    "num_hidden_layers": 16,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "intermediate_size": 2048,
    "moe_intermediate_size": 512,
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "norm_topk_prob": True,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
NUM_TOPICS = 16
COMMON, TOPIC, TOKEN = 0.5, 0.65, 0.6  # weights in an embedding: shared by all tokens, by a topic, and by none
ROUTER_SCALE, ZIPF_EXPONENT = 3.0, 0.3  # logit deviation of the longest row; decay of the row lengths
UPDATE = 0.35  # approximate size of an update of the residual stream, whose size is 1
TOPIC_STAYS = 0.98  # probability that the next token is of the same topic


def write_skewed_checkpoint(folder: Path, num_layers: int = CONFIG["num_hidden_layers"]) -> None:
    """Write the checkpoint, 0.2 GB a layer in bfloat16, unless the folder has one."""
    random = torch.Generator().manual_seed(0)
    config = Qwen3MoeConfig(
        **{**CONFIG, "num_hidden_layers": num_layers}, architectures=["Qwen3MoeForCausalLM"], dtype="bfloat16"
    )
    write_checkpoint(folder, config, partial(non_layer_tensors, random), lambda _: layer(config, random))


def topical_tokens(num_tokens: int, seed: int) -> list[int]:
    """Return a text: tokens of one topic with a Zipf distribution, until the topic changes."""
    random = np.random.default_rng(seed)
    size = CONFIG["vocab_size"] // NUM_TOPICS
    frequency = 1 / np.arange(1, size + 1)
    tokens, topic = [], int(random.integers(NUM_TOPICS))
    for word in random.choice(size, num_tokens, p=frequency / frequency.sum()):
        if random.random() > TOPIC_STAYS:
            topic = int(random.integers(NUM_TOPICS))
        tokens.append(topic * size + int(word))
    return tokens


def skew(index: npt.NDArray[np.integer], num_experts: int) -> dict[str, float]:
    """Return how skewed and persistent routing ``(layers, tokens, k)`` is.

    The results are the share of lookups of the most popular quarter of a layer's experts (0.25 if uniform), and the
    share of a token's experts that the previous token chose, too (k / experts if independent).
    """
    counts = np.stack([np.bincount(layer.ravel(), minlength=num_experts) for layer in index])
    top = -np.sort(-counts, axis=1)[:, : num_experts // 4]
    repeated = (index[:, 1:, :, None] == index[:, :-1, None, :]).any(-1)
    return {"top_quarter_share": float(top.sum() / counts.sum()), "repeated_share": float(repeated.mean())}


def topic_directions(random: torch.Generator) -> torch.Tensor:
    """Return the direction of each topic, ``(topics, hidden)``; must be the first draw from ``random``."""
    return torch.randn((NUM_TOPICS, CONFIG["hidden_size"]), generator=random)


def non_layer_tensors(random: torch.Generator) -> Tensors:
    """Return the tensors that belong to no layer."""
    vocab, hidden = CONFIG["vocab_size"], CONFIG["hidden_size"]
    topics = topic_directions(random).repeat_interleave(vocab // NUM_TOPICS, 0)
    embeddings = COMMON * torch.randn((1, hidden), generator=random) + TOPIC * topics
    embeddings = embeddings + TOKEN * torch.randn((vocab, hidden), generator=random)
    return {
        "model.embed_tokens.weight": embeddings,
        "model.norm.weight": torch.ones(hidden),
        "lm_head.weight": torch.randn((vocab, hidden), generator=random) * hidden**-0.5,
    }


def layer(config: Qwen3MoeConfig, random: torch.Generator) -> Tensors:
    """Return the tensors of a layer."""
    lengths = torch.arange(1, config.num_experts + 1) ** -ZIPF_EXPONENT  # in random order
    lengths = lengths[torch.randperm(config.num_experts, generator=random)]
    # SiLU halves the product of gate and up, and the mean of eight experts is a third of one.
    scales = {"o_proj": UPDATE, "gate": ROUTER_SCALE, "down_proj": 6 * UPDATE}

    def matrix(name: str, rows: int, columns: int) -> torch.Tensor:
        weights = torch.randn((rows, columns), generator=random) * (scales.get(name, 1.0) * columns**-0.5)
        return weights * lengths[:, None] if name == "gate" else weights

    return layer_norms(config) | layer_matrices(config, matrix)
