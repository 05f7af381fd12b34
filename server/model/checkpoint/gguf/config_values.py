"""Values of configs that many architectures have, from the metadata of GGUF files.

The keys are those of https://github.com/ggml-org/ggml/blob/master/docs/gguf.md and of llama.cpp's ``gguf-py``.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from expert_store import read_tensor
from server.model.checkpoint.gguf.gguf_file import REMEDY, GgufFile
from server.model.errors import ModelError

Values = dict[str, Any]
MIXERS = ("linear_attention", "full_attention")
SOFTMAX, SIGMOID = 1, 2  # expert_gating_func
MOST_FREQUENCIES = 1 << 12
RMS_EPSILON = "attention.layer_norm_rms_epsilon"


def decoder_values(file: GgufFile) -> Values:
    """The values that nearly every architecture has."""
    heads, hidden = file.integer("attention.head_count"), file.integer("embedding_length")
    nextn = file.integer("nextn_predict_layers", 0)  # layers that predict further tokens, after the others
    num_layers = file.integer("block_count") - nextn
    if num_layers < 1:
        raise ModelError(f"{file.name} has {num_layers} layers, not 1 or more; {REMEDY}")
    return {
        "hidden_size": hidden,
        "num_hidden_layers": num_layers,
        "num_attention_heads": heads,
        "num_key_value_heads": file.integer("attention.head_count_kv", heads),
        "head_dim": file.integer("attention.key_length", hidden // heads if heads else 0),
        "intermediate_size": file.integer("feed_forward_length", 0) or file.integer("expert_feed_forward_length", 0),
        "rms_norm_eps": file.number(RMS_EPSILON if file.has(RMS_EPSILON) else "attention.layer_norm_epsilon"),
        "max_position_embeddings": file.integer("context_length"),
        "vocab_size": _vocabulary(file),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "bos_token_id": file.plain("tokenizer.ggml.bos_token_id", int),
        "eos_token_id": file.plain("tokenizer.ggml.eos_token_id", int),
        "pad_token_id": file.plain("tokenizer.ggml.padding_token_id", int),
        "rope_parameters": rope_values(file),
        "dtype": "bfloat16",
    }


def expert_values(file: GgufFile) -> Values:
    """The values of routed experts that nearly every architecture has."""
    length = file.integer("expert_feed_forward_length", 0) or num_outputs(file, "ffn_gate_exps", "ffn_gate_up_exps")
    return {
        "num_experts": file.integer("expert_count"),
        "num_experts_per_tok": file.integer("expert_used_count"),
        "moe_intermediate_size": length or file.integer("feed_forward_length"),
    }


def local_experts(file: GgufFile) -> Values:
    """The same under the names that Mixtral's config has, and many after it."""
    found = expert_values(file)
    return {
        "intermediate_size": found["moe_intermediate_size"],
        "num_local_experts": found["num_experts"],
        "num_experts_per_tok": found["num_experts_per_tok"],
    }


def partly_rotated(file: GgufFile, values: Values) -> Values:
    """The rotary positions of a head of which only the first numbers are rotated."""
    head_dim = values["head_dim"]
    rotated = file.integer("rope.dimension_count", head_dim)
    if not 0 <= rotated <= head_dim:
        raise ModelError(
            f"{file.architecture}.rope.dimension_count of {file.name} is {rotated}, not a whole number from 0 to the "
            f"{head_dim} of a head; {REMEDY}"
        )
    return {"rope_parameters": values["rope_parameters"] | {"partial_rotary_factor": rotated / max(head_dim, 1)}}


def rope_values(file: GgufFile) -> Values:
    """The rotary positions, as transformers names them."""
    values: Values = {"rope_type": "default", "rope_theta": file.number("rope.freq_base", 10000.0)}
    kind, factor = _scaling(file)
    factors = frequency_factors(file, "rope_freqs.weight")
    if kind == "none" or factor == 1.0:
        return values if factors is None else values | given_factors(file, factors, factors)
    if factors is not None:
        raise ModelError(
            f"{file.name} has both rope_freqs.weight and {file.architecture}.rope.scaling, which Greenroom does "
            "not read together; name the model that it was made from with --config-from"
        )
    if kind == "linear":
        return values | {"rope_type": "linear", "factor": factor}
    if kind != "yarn" or factor < 1.0:
        raise ModelError(
            f"{file.name} scales rotary positions by {kind!r} with a factor of {factor:g}, which Greenroom does not "
            "read from GGUF; name the model that it was made from with --config-from"
        )
    return values | {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": file.integer("rope.scaling.original_context_length"),
        "beta_fast": file.number("rope.scaling.yarn_beta_fast", 32.0),
        "beta_slow": file.number("rope.scaling.yarn_beta_slow", 1.0),
    }


def _scaling(file: GgufFile) -> tuple[str, float]:
    """Return the kind and the factor of the scaling of rotary positions.

    Older files have another key for the factor, and none for the kind, which is then linear; 0 stands for 1.
    """
    key = "rope.scaling.factor" if file.has("rope.scaling.factor") else "rope.scale_linear"
    return str(file.value("rope.scaling.type", "linear")), file.number(key, 1.0) or 1.0


def given_factors(file: GgufFile, short: list[float], long: list[float]) -> Values:
    """Rotary positions whose frequencies are divided by a factor each."""
    length = file.integer("context_length")
    original = file.integer("rope.scaling.original_context_length", length)
    return {
        "rope_type": "longrope",
        "short_factor": short,
        "long_factor": long,
        "factor": max(length / max(original, 1), 1.0),
        "attention_factor": file.number("rope.scaling.attn_factor", 1.0),
        "original_max_position_embeddings": original,
    }


def frequency_factors(file: GgufFile, name: str) -> list[float] | None:
    """Return the factors that a tensor has for rotary frequencies; None if there is no such tensor.

    Raises:
        ModelError: the tensor can't be such factors.
    """
    tensor = file.tensors.get(name)
    if tensor is None:
        return None
    if tensor.type.dtype != torch.float32 or len(tensor.shape) != 1 or tensor.shape[0] > MOST_FREQUENCIES:
        raise ModelError(f"{name} of {file.name} is not a row of float32 factors; download the file again")
    factors: list[float] = read_tensor(tensor.source).tolist()
    if not all(0 < factor < math.inf for factor in factors):
        raise ModelError(f"{name} of {file.name} holds a factor that is not positive; download the file again")
    return factors


def numbers_by_layer(file: GgufFile, key: str, num_layers: int) -> list[int]:
    """A number of each layer; files with the same one for all have it once.

    Layers that predict further tokens may have numbers too, after those of ``num_layers``.
    """
    found = file.value(key)
    numbers = found if isinstance(found, list) else [found] * num_layers
    if len(numbers) not in (num_layers, file.integer("block_count")) or any(type(each) is not int for each in numbers):
        raise ModelError(f"{file.architecture}.{key} of {file.name} is not a number for each of {num_layers} layers")
    return numbers[:num_layers]


def flags_by_layer(file: GgufFile, key: str, num_layers: int) -> list[bool]:
    """A truth value of each layer, which files may store as a number; one for all is given once."""
    found = file.value(key)
    flags = found if isinstance(found, list) else [found] * num_layers
    if len(flags) not in (num_layers, file.integer("block_count")) or any(each not in (0, 1) for each in flags):
        raise ModelError(
            f"{file.architecture}.{key} of {file.name} is not true or false for each of {num_layers} layers"
        )
    return [bool(each) for each in flags[:num_layers]]


def gating(file: GgufFile) -> int:
    """Return how experts are scored; older files do not say it, and a correction of scores belongs to sigmoids."""
    default = SIGMOID if any(name.endswith("exp_probs_b.bias") for name in file.tensors) else SOFTMAX
    return file.integer("expert_gating_func", default)


def _vocabulary(file: GgufFile) -> int:
    table = file.tensors.get("token_embd.weight")
    if table is None:
        raise ModelError(f"{file.name} lacks token_embd.weight; download the file again")
    return table.shape[0]


def num_outputs(file: GgufFile, *leaves: str) -> int:
    """The outputs of the matrices of a name in the first layer that has them; 0 if none has."""
    for tensor in file.tensors.values():
        for leaf in leaves:
            if tensor.name.endswith(f".{leaf}.weight"):
                return tensor.shape[-2] // (2 if "gate_up" in leaf else 1)
    return 0


def mamba_head(file: GgufFile) -> int:
    """The size of a head of Mamba-2."""
    return file.integer("ssm.inner_size") // max(file.integer("ssm.time_step_rank"), 1)


def has_tensor(file: GgufFile, leaf: str) -> bool:
    """Return True if a layer has a tensor of a name."""
    return any(name.endswith(f".{leaf}") for name in file.tensors)


def delta_net(file: GgufFile, values: Values) -> Values:
    """The values of gated delta nets, and the kinds of all layers."""
    heads, num_layers = file.integer("ssm.time_step_rank"), values["num_hidden_layers"]
    if file.has("attention.recurrent_layers"):
        is_recurrent = flags_by_layer(file, "attention.recurrent_layers", num_layers)
    else:
        interval = file.integer("full_attention_interval", 4)
        is_recurrent = [(layer + 1) % interval != 0 for layer in range(num_layers)]
    return {
        "linear_conv_kernel_dim": file.integer("ssm.conv_kernel"),
        "linear_key_head_dim": file.integer("ssm.state_size"),
        "linear_num_key_heads": file.integer("ssm.group_count"),
        "linear_num_value_heads": heads,
        "linear_value_head_dim": file.integer("ssm.inner_size") // max(heads, 1),
        "shared_expert_intermediate_size": file.integer("expert_shared_feed_forward_length"),
        "layer_types": [MIXERS[not recurs] for recurs in is_recurrent],
    }
