"""Mistral Small 4: DeepSeek-V3's latent attention, and experts that a softmax chooses."""

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
    rope = RopeKind.INTERLEAVED if config.rope_interleave else RopeKind.HALVES
    attention = LatentAttention("self_attn", rope=rope, scaling=latent_scaling(config))
    return Declaration(
        layers=[
            layer(
                config, attention, is_sparse=index >= config.first_k_dense_replace, is_normalised=config.norm_topk_prob
            )
            for index in range(config.num_hidden_layers)
        ]
    )


def layer(config: Any, mixer: MixerDeclaration, *, is_sparse: bool, is_normalised: bool) -> Layer:
    """Return a layer with an MLP, or with experts and one that every token goes to."""
    if not is_sparse:
        return Layer(mixer=mixer, mlp=Mlp())
    router = Router(
        kind=RouterKind.SOFTMAX_FIRST,
        top_k=config.num_experts_per_tok,
        is_normalised=is_normalised,
        scale=config.routed_scaling_factor,
        groups=config.n_group or 1,
        top_groups=config.topk_group or 1,
    )
    return Layer(mixer=mixer, experts=Experts(router=router), mlp=Mlp(module="mlp.shared_experts"))
