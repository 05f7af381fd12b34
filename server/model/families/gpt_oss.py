"""gpt-oss: attention with sinks, every other layer with a window, and experts with biases."""

from __future__ import annotations

from typing import Any

from server.model.declarations import (
    Declaration,
    Experts,
    GroupedAttention,
    Layer,
    PairAngles,
    Rotary,
    Router,
    RouterKind,
    head_scaling,
)
from server.model.declarations.gguf import (
    ATTENTION,
    POST_NORM,
    SAME_BASE,
    Architecture,
    GgufFile,
    Place,
    Values,
    decoder_values,
    linears,
    local_experts,
    pattern,
    read,
)


def declare(config: Any) -> Declaration:
    layers = {
        "sliding_attention": layer(config, window=config.sliding_window),
        "full_attention": layer(config, window=0),
    }
    return Declaration(layers=[layers[kind] for kind in config.layer_types], rotary=[Rotary(columns=PairAngles.ALL)])


def layer(config: Any, window: int) -> Layer:
    router = Router(
        module="mlp.router",
        weight="mlp.router.weight",
        bias="mlp.router.bias",
        kind=RouterKind.SOFTMAX_FIRST,
        top_k=config.num_experts_per_tok,
    )
    attention = GroupedAttention("self_attn", scaling=head_scaling(config), window=window, sinks="sinks")
    return Layer(mixer=attention, experts=Experts(router=router))


PLACES = {
    **POST_NORM,
    **ATTENTION,
    **linears({"ffn_gate_inp": "mlp.router"}),
    "attn_sinks.weight": Place("self_attn.sinks"),
}


def gguf_config(file: GgufFile) -> Values:
    """``gpt-oss``: every second layer has a window, the first one has."""
    values = decoder_values(file)
    kinds = ("sliding_attention", "full_attention")
    return values | {
        "model_type": "gpt_oss",
        **local_experts(file),
        "sliding_window": file.integer("attention.sliding_window"),
        "layer_types": [kinds[layer % 2] for layer in range(values["num_hidden_layers"])],
        "attention_bias": True,
        "rope_parameters": values["rope_parameters"] | {"truncate": False},
    }


GGUF = Architecture(
    "gpt-oss",
    gguf_config,
    PLACES,
    keys={
        **read("attention.sliding_window"),
        "attention.sliding_window_pattern": pattern(2),
        "rope.freq_base_swa": SAME_BASE,
    },
)
