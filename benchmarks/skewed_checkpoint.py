"""A large random checkpoint whose routing is skewed and steady, as in trained models.

Plain random weights route almost uniformly, so that any cache hits as often as it is large. Here three things are
put in: tokens come in topics (their embeddings share a direction), rows of a router differ in length (Zipf), and each
layer adds little to the residual stream, so that what layers choose hangs together.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from transformers import Qwen3MoeConfig

from benchmarks.qwen3_moe import Tensors, layer_matrices, layer_norms, write_checkpoint

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
COMMON, TOPIC, TOKEN = 0.5, 0.65, 0.6  # parts of an embedding that all tokens, those of a topic, and none share
ROUTER_SCALE, ZIPF_EXPONENT = 3.0, 0.3  # deviation of the longest row's logits; how fast rows get shorter
UPDATE = 0.35  # what attention and experts add to the stream, about, whose size is 1
TOPIC_STAYS = 0.98  # that the next token is of the same topic


def write_skewed_checkpoint(folder: Path) -> None:
    """Write it, unless the folder holds it already; 3.3 GB in bfloat16."""
    random = torch.Generator().manual_seed(0)
    config = Qwen3MoeConfig(**CONFIG, architectures=["Qwen3MoeForCausalLM"], dtype="bfloat16")
    write_checkpoint(folder, config, partial(outside, random), lambda _: layer(config, random))


def topical_tokens(num_tokens: int, seed: int) -> list[int]:
    """A text: tokens of a topic, some more frequent than others, until the topic changes."""
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
    """How skewed and steady routing is: ``(layers, tokens, k)``.

    The share of look-ups that go to the most popular quarter of a layer's experts (0.25 if uniform), and the part of
    a token's experts that the token before chose too (k / experts if independent).
    """
    counts = np.stack([np.bincount(layer.ravel(), minlength=num_experts) for layer in index])
    top = -np.sort(-counts, axis=1)[:, : num_experts // 4]
    repeated = (index[:, 1:, :, None] == index[:, :-1, None, :]).any(-1)
    return {"top_quarter_share": float(top.sum() / counts.sum()), "repeated_share": float(repeated.mean())}


def topic_directions(random: torch.Generator) -> torch.Tensor:
    """What the embeddings of each topic's tokens share, ``(topics, hidden)``; the first that is drawn."""
    return torch.randn((NUM_TOPICS, CONFIG["hidden_size"]), generator=random)


def outside(random: torch.Generator) -> Tensors:
    """The tensors that belong to no layer."""
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
    """The tensors of a layer."""
    lengths = torch.arange(1, config.num_experts + 1) ** -ZIPF_EXPONENT  # in random order
    lengths = lengths[torch.randperm(config.num_experts, generator=random)]
    # Half of what gate and up give is left after SiLU, and the mean of eight experts is a third of one.
    scales = {"o_proj": UPDATE, "gate": ROUTER_SCALE, "down_proj": 6 * UPDATE}

    def matrix(name: str, rows: int, columns: int) -> torch.Tensor:
        weights = torch.randn((rows, columns), generator=random) * (scales.get(name, 1.0) * columns**-0.5)
        return weights * lengths[:, None] if name == "gate" else weights

    return layer_norms(config) | layer_matrices(config, matrix)
