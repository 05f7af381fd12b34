"""The places of tensors in transformers' model, of which architectures are made.

A tensor of a file is a *leaf* of a layer (``blk.N.LEAF``) or of the model; a parameter is named within its layer
(``model.layers.N.NAME``). Names of tensors: ``constants.py`` of llama.cpp's ``gguf-py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from server.model.checkpoint.gguf import conversions
from server.model.checkpoint.gguf.conversions import Convert, unchanged


@dataclass(frozen=True)
class Place:
    """The parameter that a tensor becomes, alone or together with others."""

    name: str
    convert: Convert = unchanged
    others: tuple[str, ...] = ()  # further leaves, whose tensors follow the first one's


Places = Mapping[str, Place]


def linears(names: Mapping[str, str], kinds: tuple[str, ...] = ("weight", "bias")) -> dict[str, Place]:
    """Return the places of modules with weights and perhaps biases."""
    return {f"{leaf}.{kind}": Place(f"{name}.{kind}") for leaf, name in names.items() for kind in kinds}


MODEL = linears(
    {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}, kinds=("weight",)
)
OFFSET_MODEL = {**MODEL, "output_norm.weight": Place("model.norm.weight", conversions.less_one)}
NORMS = linears({"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}, kinds=("weight",))
POST_NORM = linears({"attn_norm": "input_layernorm", "post_attention_norm": "post_attention_layernorm"}, ("weight",))
ATTENTION = linears(
    {
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
    }
)
HEAD_NORMS = linears({"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}, kinds=("weight",))
ROUTER = linears({"ffn_gate_inp": "mlp.gate"}, kinds=("weight",))
CORRECTION = {"exp_probs_b.bias": Place("mlp.gate.e_score_correction_bias")}
DENSE = linears({"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}, kinds=("weight",))
GROUPED = {**ATTENTION, **HEAD_NORMS, **ROUTER, **DENSE}


def shared_linears(module: str) -> dict[str, Place]:
    """Return the places of shared experts."""
    return linears({f"ffn_{kind}_shexp": f"{module}.{kind}_proj" for kind in ("gate", "up", "down")}, ("weight",))


SHARED_GATE = {"ffn_gate_inp_shexp.weight": Place("mlp.shared_expert_gate.weight", conversions.one_row)}
LATENT = {
    **linears(
        {
            "attn_q": "self_attn.q_proj",
            "attn_q_a": "self_attn.q_a_proj",
            "attn_q_a_norm": "self_attn.q_a_layernorm",
            "attn_q_b": "self_attn.q_b_proj",
            "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
            "attn_kv_a_norm": "self_attn.kv_a_layernorm",
            "attn_kv_b": "self_attn.kv_b_proj",
            "attn_output": "self_attn.o_proj",
        },
        kinds=("weight",),
    ),
    "attn_k_b.weight": Place(
        "self_attn.kv_b_proj.weight", conversions.expansion_of_latents, others=("attn_v_b.weight",)
    ),
}
OFFSET_NORMS = {
    "attn_norm.weight": Place("input_layernorm.weight", conversions.less_one),
    "post_attention_norm.weight": Place("post_attention_layernorm.weight", conversions.less_one),
    "attn_q_norm.weight": Place("self_attn.q_norm.weight", conversions.less_one),
    "attn_k_norm.weight": Place("self_attn.k_norm.weight", conversions.less_one),
}
PERMUTED = {  # queries and keys whose rows llama.cpp reorders within heads
    "attn_q.weight": Place("self_attn.q_proj.weight", conversions.queries_in_halves),
    "attn_k.weight": Place("self_attn.k_proj.weight", conversions.keys_in_halves),
}


def mamba(module: str) -> dict[str, Place]:
    """Return the places of a Mamba-2 layer."""
    return {
        **linears({"ssm_in": f"{module}.in_proj", "ssm_out": f"{module}.out_proj"}),
        "ssm_a": Place(f"{module}.A_log", conversions.decay_log_each),
        "ssm_d": Place(f"{module}.D", conversions.one_number_each),
        "ssm_dt.bias": Place(f"{module}.dt_bias"),
        "ssm_conv1d.weight": Place(f"{module}.conv1d.weight", conversions.with_channel),
        "ssm_conv1d.bias": Place(f"{module}.conv1d.bias"),
        "ssm_norm.weight": Place(f"{module}.norm.weight", conversions.one_number_each),
    }
