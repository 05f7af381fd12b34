"""Hunyuan-A13B and Hunyuan-Large: norms of heads after the rotation, and experts beside a shared MLP."""

from __future__ import annotations

from typing import Any

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
from server.model.declarations.gguf import (
    ATTENTION,
    NORMS,
    Architecture,
    GgufFile,
    Values,
    decoder_values,
    expert_values,
    linears,
    shared_linears,
)


def declare(config: Any) -> Declaration:
    count, top_k = config.num_hidden_layers, config.moe_topk
    return Declaration(
        layers=[layer(config, each) for each in ([top_k] * count if isinstance(top_k, int) else top_k[:count])]
    )


def layer(config: Any, top_k: int) -> Layer:
    router = Router(
        module="mlp.gate.wg",
        weight="mlp.gate.wg.weight",
        kind=RouterKind.SOFTMAX_FIRST,
        top_k=top_k,
        chooses=False,
    )
    return Layer(
        mixer=GroupedAttention("self_attn", scaling=head_scaling(config), norms_rotated=True),
        experts=Experts(router=router),
        mlp=Mlp(module="mlp.shared_mlp"),
    )


PLACES = {
    **NORMS,
    **ATTENTION,
    **linears(
        {
            "attn_q_norm": "self_attn.query_layernorm",
            "attn_k_norm": "self_attn.key_layernorm",
            "ffn_gate_inp": "mlp.gate.wg",
        },
        kinds=("weight",),
    ),
    **shared_linears("mlp.shared_mlp"),
}


def gguf_config(file: GgufFile) -> Values:
    """``hunyuan-moe``: norms of queries and keys after their rotation, and a shared expert as large as the others."""
    experts = expert_values(file)
    return decoder_values(file) | {
        "model_type": "hunyuan_v1_moe",
        "intermediate_size": experts["moe_intermediate_size"],
        "num_experts": experts["num_experts"],
        "moe_topk": experts["num_experts_per_tok"],
    }


GGUF = Architecture("hunyuan-moe", gguf_config, PLACES)
