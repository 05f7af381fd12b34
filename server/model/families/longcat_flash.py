"""LongCat-Flash: each layer has two blocks of latent attention and an MLP; the second adds the experts of the first."""

from __future__ import annotations

from typing import Any

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
    router = Router(
        module="mlp.router.classifier",
        weight="mlp.router.classifier.weight",
        correction="mlp.router.e_score_correction_bias",
        kind=RouterKind.SOFTMAX_FIRST,
        top_k=config.moe_topk,
        is_normalised=False,
        scale=config.routed_scaling_factor,
        chooses=False,
    )
    blocks = [
        Layer(
            mixer=LatentAttention(f"self_attn.{number}", rope=RopeKind.INTERLEAVED, scaling=latent_scaling(config)),
            experts=Experts(router=router, is_deferred=True) if number == 0 else None,
            mlp=Mlp(module=f"mlps.{number}"),
            input_norm=f"input_layernorm.{number}",
            inner_norm=f"post_attention_layernorm.{number}",
            adds_deferred=number == 1,
        )
        for number in range(2)
    ]
    return Declaration(layers=blocks * config.num_layers, layers_in_one=len(blocks))
