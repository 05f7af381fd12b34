"""Granite 3 with experts: a softmax chooses them, and the config has a factor for each part."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from server.model.blocks.declaration import MixerDeclaration
from server.model.declarations import (
    Declaration,
    Experts,
    GroupedAttention,
    Layer,
    Mlp,
    Rotary,
    Router,
    RouterKind,
)
from server.model.declarations.gguf import (
    ATTENTION,
    NORMS,
    PERMUTED,
    Architecture,
    GgufFile,
    Place,
    Values,
    conversions,
    decoder_values,
    linears,
    local_experts,
    read,
)


def declare(config: Any) -> Declaration:
    attention = GroupedAttention("self_attn", scaling=config.attention_multiplier)
    return model(config, [layer(config, attention)] * config.num_hidden_layers)


def layer(config: Any, mixer: MixerDeclaration, *, has_shared: bool = False) -> Layer:
    """Return a layer with experts, if the config has some, and an MLP beside them, if it has one."""
    router = Router(
        module="block_sparse_moe.router",
        weight="block_sparse_moe.router.weight",
        kind=RouterKind.SOFTMAX_FIRST,
        top_k=config.num_experts_per_tok,
    )
    return Layer(
        mixer=mixer,
        experts=Experts(module="block_sparse_moe.experts", router=router) if config.num_local_experts > 0 else None,
        mlp=Mlp(module="shared_mlp") if has_shared else None,
        residual_scale=config.residual_multiplier,
    )


def model(config: Any, layers: Sequence[Layer], rotary: Sequence[Rotary] = (Rotary(),)) -> Declaration:
    return Declaration(
        layers=layers,
        rotary=rotary,
        embedding_scale=config.embedding_multiplier,
        logits_scale=1 / config.logits_scaling,
    )


SCALES = read("attention.scale", "embedding_scale", "residual_scale", "logit_scale")
PLACES = {
    **NORMS,
    **ATTENTION,
    **PERMUTED,
    **linears({"ffn_gate_inp": "block_sparse_moe.router", "ffn_down_shexp": "shared_mlp.output_linear"}, ("weight",)),
    "ffn_gate_shexp.weight": Place(
        "shared_mlp.input_linear.weight", conversions.joined, others=("ffn_up_shexp.weight",)
    ),
}


def gguf_config(file: GgufFile) -> Values:
    """``granitemoe``: Granite 3 and 4 without recurrent layers, with or without shared experts."""
    values, shared = decoder_values(file), file.integer("expert_shared_feed_forward_length", 0)
    kind = {"model_type": "granitemoeshared", "shared_intermediate_size": shared}
    return values | granite_values(file, values) | (kind if shared else {"model_type": "granitemoe"})


def granite_values(file: GgufFile, values: Values) -> Values:
    """The values that all of Granite's architectures have; llama.cpp takes a scale of 0 for none."""
    return {
        **local_experts(file),
        "attention_multiplier": file.number("attention.scale", 0.0) or max(values["head_dim"], 1) ** -0.5,
        "embedding_multiplier": file.number("embedding_scale", 1.0) or 1.0,
        "residual_multiplier": file.number("residual_scale", 1.0) or 1.0,
        "logits_scaling": file.number("logit_scale", 1.0) or 1.0,
    }


GGUF = Architecture("granitemoe", gguf_config, PLACES, keys=SCALES, experts="block_sparse_moe.experts")
