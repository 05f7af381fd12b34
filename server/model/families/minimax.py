"""MiniMax-Text-01 and M1: lightning attention, some layers of softmax attention, and residuals of normed inputs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from server.model.declarations import Declaration, GroupedAttention, Layer, LightningAttention, head_scaling
from server.model.families.mixtral import experts


def declare(config: Any) -> Declaration:
    betas = config.linear_attn_beta_factor, config.full_attn_beta_factor, config.mlp_beta_factor
    if len({*betas}) > 1:
        raise ValueError(f"linear_attn_beta_factor, full_attn_beta_factor and mlp_beta_factor differ: {betas}")
    lightning = Layer(
        mixer=LightningAttention("self_attn"),
        experts=experts(config),
        mixer_residual=config.linear_attn_alpha_factor,
        inner_residual=config.mlp_alpha_factor,
        residual_scale=config.mlp_beta_factor,
    )
    attention = GroupedAttention("self_attn", scaling=head_scaling(config), window=config.sliding_window or 0)
    full = replace(lightning, mixer=attention, mixer_residual=config.full_attn_alpha_factor)
    return Declaration(layers=[lightning if kind == "linear_attention" else full for kind in config.layer_types])
