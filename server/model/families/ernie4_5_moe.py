"""ERNIE 4.5: attention with interleaved positions, and experts that a corrected softmax chooses."""

from __future__ import annotations

from typing import Any

from server.model.declarations import (
    Declaration,
    Experts,
    GroupedAttention,
    Layer,
    Mlp,
    RopeKind,
    Router,
    RouterKind,
    head_scaling,
)
from server.model.declarations.gguf import (
    GROUPED,
    NORMS,
    POSITIONS_OF_AXES,
    Architecture,
    GgufFile,
    Place,
    Values,
    conversions,
    decoder_values,
    expert_values,
    read,
    shared_linears,
)


def declare(config: Any) -> Declaration:
    mixer = attention(config)
    dense = Layer(mixer=mixer, mlp=Mlp())
    sparse = Layer(mixer=mixer, experts=Experts(router=router(config, "mlp.gate")), mlp=shared_experts(config))
    return Declaration(
        layers=[sparse if is_sparse(config, index) else dense for index in range(config.num_hidden_layers)]
    )


def attention(config: Any) -> GroupedAttention:
    return GroupedAttention("self_attn", rope=RopeKind.INTERLEAVED, scaling=head_scaling(config))


def is_sparse(config: Any, index: int) -> bool:
    is_within: bool = config.moe_layer_start_index <= index <= config.moe_layer_end_index
    return is_within and bool((index + 1) % config.moe_layer_interval == 0)


def router(config: Any, module: str) -> Router:
    return Router(
        module=module,
        weight=f"{module}.weight",
        correction=f"{module}.moe_statics.e_score_correction_bias",
        kind=RouterKind.SOFTMAX_FIRST,
        top_k=config.moe_k,
    )


def shared_experts(config: Any) -> Mlp | None:
    return Mlp(module="mlp.shared_experts") if config.moe_num_shared_experts > 0 else None


PLACES = {
    **NORMS,
    **GROUPED,
    **shared_linears("mlp.shared_experts"),
    "exp_probs_b.bias": Place("mlp.gate.moe_statics.e_score_correction_bias", conversions.one_row),
}


def gguf_config(file: GgufFile) -> Values:
    """``ernie4_5-moe``: experts chosen by corrected softmax scores, some of them shared."""
    experts = expert_values(file)
    return decoder_values(file) | {
        "model_type": "ernie4_5_moe",
        "moe_intermediate_size": experts["moe_intermediate_size"],
        "moe_num_experts": experts["num_experts"],
        "moe_k": experts["num_experts_per_tok"],
        "moe_num_shared_experts": file.integer("expert_shared_count", 0),
        "moe_layer_start_index": file.integer("leading_dense_block_count", 0),
        "moe_layer_interval": file.integer("interleave_moe_layer_step", 1),
    }


GGUF = Architecture(
    "ernie4_5-moe", gguf_config, PLACES, keys={**read("interleave_moe_layer_step"), **POSITIONS_OF_AXES}
)
