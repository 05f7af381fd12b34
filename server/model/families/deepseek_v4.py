"""DeepSeek-V4: attention to the last keys and to compressed ones, several residual streams, and routers with tables."""

from __future__ import annotations

from typing import Any

from server.model.declarations import (
    CompressedAttention,
    Declaration,
    Experts,
    Layer,
    Mlp,
    PairAngles,
    RopeKind,
    Rotary,
    Router,
    RouterKind,
)

SCORES = {"sqrtsoftplus": RouterKind.SQRT_SOFTPLUS, "sigmoid": RouterKind.SIGMOID, "softmax": RouterKind.SOFTMAX_FIRST}


def declare(config: Any) -> Declaration:
    rotary = [*dict.fromkeys(position_kind(mixer) for mixer in config.layer_types)]
    layers = [
        Layer(
            mixer=CompressedAttention(
                "self_attn", rope=RopeKind.INTERLEAVED, rotary=rotary.index(position_kind(mixer))
            ),
            experts=Experts(router=router(config, is_hash=kind == "hash_moe")),
            mlp=Mlp(module="mlp.shared_experts"),
            streams=["attn_hc", "ffn_hc"],
        )
        for mixer, kind in zip(config.layer_types, config.mlp_layer_types, strict=True)
    ]
    return Declaration(
        layers=layers,
        rotary=[Rotary(columns=PairAngles.ALL, named={"layer_type": kind}) for kind in rotary],
        num_streams=config.hc_mult,
    )


def position_kind(mixer: str) -> str:
    return "main" if mixer == "sliding_attention" else "compress"


def router(config: Any, *, is_hash: bool) -> Router:
    """Return a router whose experts are the best ones, or those of the token in a table."""
    return Router(
        correction=None if is_hash else "mlp.gate.e_score_correction_bias",
        kind=SCORES[config.scoring_func],
        top_k=config.num_experts_per_tok,
        scale=config.routed_scaling_factor,
        has_table=is_hash,
        chooses=not is_hash,
    )
