"""Large random checkpoint whose experts are specialised by domain: law, HR, code, safety.

It is the skewed checkpoint with other routers: each expert of a layer belongs to a domain and prefers the tokens of
that domain's topics, so that a text of one domain uses a quarter of the experts.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from transformers import Qwen3MoeConfig

from benchmarks import skewed_checkpoint
from benchmarks.checkpoint_writer import Tensors, write_checkpoint
from benchmarks.skewed_checkpoint import CONFIG, NUM_TOPICS

NUM_DOMAINS = 4
PREFERENCE, NOISE = 10.0, 1.5  # standard deviations of router logits: for tokens of the own domain, and random


def write_checkpoint_by_domain(folder: Path) -> None:
    """Write the checkpoint, 3.3 GB in bfloat16, unless the folder has one."""
    random = torch.Generator().manual_seed(0)
    config = Qwen3MoeConfig(**CONFIG, architectures=["Qwen3MoeForCausalLM"], dtype="bfloat16")
    topics = skewed_checkpoint.topic_directions(torch.Generator().manual_seed(0))
    write_checkpoint(
        folder, config, partial(skewed_checkpoint.non_layer_tensors, random), lambda _: _layer(config, topics, random)
    )


def domain_tokens(domain: int) -> list[int]:
    """Return all tokens of a domain's topics."""
    size = CONFIG["vocab_size"] // NUM_TOPICS
    return [topic * size + word for topic in range(domain, NUM_TOPICS, NUM_DOMAINS) for word in range(size)]


def _layer(config: Qwen3MoeConfig, topics: torch.Tensor, random: torch.Generator) -> Tensors:
    tensors = skewed_checkpoint.layer(config, random)
    hidden = config.hidden_size
    domains = torch.stack([topics[domain::NUM_DOMAINS].sum(0) for domain in range(NUM_DOMAINS)])  # (domains, hidden)
    of_expert = torch.randperm(config.num_experts, generator=random) % NUM_DOMAINS
    noise = torch.randn((config.num_experts, hidden), generator=random) * (NOISE * hidden**-0.5)
    # A token's state has its topic's direction with weight TOPIC, so its product with that direction is TOPIC * hidden.
    tensors["mlp.gate.weight"] = domains[of_expert] * (PREFERENCE / (skewed_checkpoint.TOPIC * hidden)) + noise
    return tensors
