"""DeepSeek-V3, R1 and Kimi K2: latent attention, and experts that a token takes from its best groups of experts."""

from __future__ import annotations

from typing import Any

from server.model.blocks.declaration import MixerDeclaration
from server.model.declarations import (
    Declaration,
    Experts,
    LatentAttention,
    Layer,
    Mlp,
    RopeKind,
    Router,
    RouterKind,
    latent_scaling,
)


def declare(config: Any) -> Declaration:
    mixer = attention(config)
    return Declaration(
        layers=[
            layer(config, mixer, is_sparse=index >= config.first_k_dense_replace)
            for index in range(config.num_hidden_layers)
        ]
    )


def attention(config: Any) -> LatentAttention:
    rope = RopeKind.INTERLEAVED if config.rope_interleave else RopeKind.HALVES
    return LatentAttention("self_attn", rope=rope, scaling=latent_scaling(config))


def layer(config: Any, mixer: MixerDeclaration, *, is_sparse: bool) -> Layer:
    """Return a layer with an MLP, or with experts and one that every token goes to."""
    if not is_sparse:
        return Layer(mixer=mixer, mlp=Mlp())
    return Layer(mixer=mixer, experts=Experts(router=router(config)), mlp=Mlp(module="mlp.shared_experts"))


def router(config: Any) -> Router:
    """Return a router with sigmoids as scores, to which it adds a correction for the choice alone."""
    return Router(
        correction="mlp.gate.e_score_correction_bias",
        kind=RouterKind.SIGMOID,
        top_k=config.num_experts_per_tok,
        is_normalised=config.norm_topk_prob,
        scale=config.routed_scaling_factor,
        groups=config.n_group or 1,
        top_groups=config.topk_group or 1,
    )
