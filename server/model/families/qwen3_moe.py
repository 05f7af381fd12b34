"""Qwen3-30B-A3B and Qwen3-235B-A22B: attention with norms of heads, and experts that a softmax chooses."""

from __future__ import annotations

from typing import Any

from server.model.blocks.declaration import MixerDeclaration
from server.model.declarations import (
    Declaration,
    Experts,
    GroupedAttention,
    Layer,
    Mlp,
    Router,
    RouterKind,
    head_scaling,
)
from server.model.declarations.gguf import GROUPED, NORMS, Architecture, GgufFile, Values, decoder_values, expert_values


def declare(config: Any) -> Declaration:
    attention = GroupedAttention("self_attn", scaling=head_scaling(config), window=config.sliding_window or 0)
    return Declaration(layers=layers(config, attention, experts(config)))


def layers(config: Any, mixer: MixerDeclaration, experts: Experts) -> list[Layer]:
    """Return layers with experts or an MLP."""
    sparse, dense = Layer(mixer=mixer, experts=experts), Layer(mixer=mixer, mlp=Mlp())
    return [sparse if is_sparse(config, index) else dense for index in range(config.num_hidden_layers)]


def is_sparse(config: Any, index: int) -> bool:
    """Return whether a layer has experts."""
    return index not in config.mlp_only_layers and (index + 1) % config.decoder_sparse_step == 0


def experts(config: Any) -> Experts:
    router = Router(
        kind=RouterKind.SOFTMAX_FIRST, top_k=config.num_experts_per_tok, is_normalised=config.norm_topk_prob
    )
    return Experts(router=router)


def gguf_config(file: GgufFile) -> Values:
    """``qwen3moe``; files do not say that the weights of chosen experts are normalised, which they always are."""
    return decoder_values(file) | expert_values(file) | {"model_type": "qwen3_moe", "norm_topk_prob": True}


GGUF = Architecture("qwen3moe", gguf_config, {**NORMS, **GROUPED})
