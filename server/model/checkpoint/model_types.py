"""Model types of the hub that transformers lacks, but whose architecture it computes under another name.

Their checkpoints bring code of their own (``auto_map``), which is never run: the config is read as that of the other
type, as in vLLM's registry. Each entry names its source.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig
from transformers import __version__ as transformers_version

from server.model.architecture import register_model_type
from server.model.errors import ModelError

Values = Mapping[str, Any]


@dataclass(frozen=True)
class ServedAs:
    """The type of transformers that computes a model of another type."""

    model_type: str
    required: Mapping[str, Any] = field(default_factory=dict)  # settings that the class presupposes, if they are given
    convert: Callable[[Values], Values] = dict


def ernie_vl_config(values: Values) -> Values:
    """Convert the flat config of ``ernie4_5_moe_vl`` to one with a config for each part.

    Source: ``convert_ernie4_5_vl_moe_to_hf.py`` of transformers 5.
    """
    layers, interval = range(values["num_hidden_layers"]), values.get("moe_layer_interval", 1)
    first, last = min(values["moe_layer_start_index"]), max(values["moe_layer_end_index"])
    half = values["hidden_size"] // values["num_attention_heads"] // 2
    temporal = values.get("freq_allocation", 20)
    spatial = (half - temporal) // 2
    rope = {"rope_type": "default", "rope_theta": values["rope_theta"], "mrope_section": [spatial, spatial, temporal]}
    text = {name: values[name] for name in ERNIE_TEXT if name in values} | {
        "moe_num_experts": values["moe_num_experts"][0],
        "moe_num_shared_experts": values.get("moe_num_shared_experts") or 0,
        "rope_parameters": rope,
        "mlp_layer_types": [
            "sparse" if first <= layer <= last and (layer + 1) % interval == 0 else "dense" for layer in layers
        ],
    }
    tower = values["vision_config"]
    vision = {name: tower[name] for name in ERNIE_VISION if name in tower} | {
        "intermediate_size": int(tower["hidden_size"] * tower["mlp_ratio"]),
        "spatial_merge_size": values["spatial_conv_size"],
        "temporal_merge_size": values["temporal_conv_size"],
    }
    kept = {name: values[name] for name in ERNIE_BOTH if name in values}
    return kept | {"text_config": text, "vision_config": vision, "image_token_id": values["im_patch_id"]}


ERNIE_TEXT = (
    *("hidden_size", "intermediate_size", "max_position_embeddings", "moe_intermediate_size", "moe_k", "hidden_act"),
    *("num_attention_heads", "num_hidden_layers", "num_key_value_heads", "rms_norm_eps", "vocab_size", "use_bias"),
    *("tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id"),
)
ERNIE_VISION = ("depth", "hidden_size", "hidden_act", "num_heads", "in_channels", "patch_size")
ERNIE_BOTH = ("architectures", "dtype", "torch_dtype", "tie_word_embeddings", "quantization_config", "eos_token_id")

BAILING_V2 = ServedAs(
    "sarvam_moe", {"score_function": "sigmoid", "norm_topk_prob": True, "use_bias": False, "use_qk_norm": True}
)
SERVED_AS: Mapping[str, ServedAs] = {
    # vllm/transformers_utils/config.py: kimi_k2="DeepseekV3Config"; docs/deploy_guidance.md of Kimi-K2 says the same.
    "kimi_k2": ServedAs("deepseek_v3", {"scoring_func": "sigmoid", "topk_method": "noaux_tc", "moe_layer_freq": 1}),
    # modeling_bailing_moe_v2.py of inclusionAI/Ling-V2: attention with norms of queries and keys, a router of groups
    # and a bias, as in transformers' class of sarvam_moe, whose checkpoints have the same names of tensors.
    "bailing_moe_v2": BAILING_V2,
    # vllm/model_executor/models/registry.py: Ernie4_5_VLMoeForConditionalGeneration
    "ernie4_5_moe_vl": ServedAs("ernie4_5_vl_moe", convert=ernie_vl_config),
}
BY_ARCHITECTURE: Mapping[str, ServedAs] = {  # of types that several architectures share
    "BailingMoeV2ForCausalLM": BAILING_V2,  # published Ling-mini-2.0 and Ling-1T: model_type bailing_moe
}
PRESUPPOSED: Mapping[str, Mapping[str, Any]] = {  # settings of published configs that transformers' class ignores
    # modeling_step3p5.py of stepfun-ai/Step-3.5-Flash
    "step3p5": {
        "att_impl_type": "GQA",
        "moe_router_activation": "sigmoid",
        "norm_expert_weight": True,
        "sink": False,
        "use_head_wise_attn_gate": True,
        "use_moe_router_bias": True,
        "use_qk_norm": True,
        "use_rope_layers": True,
        "yarn_only_types": "full_attention",
        "zero_centered": True,
    },
}
EXPERTS_NOT_COMPUTED: Mapping[str, str] = {  # settings that give experts to a type whose class has none
    # config.json of nomic-ai/nomic-embed-text-v2-moe
    "nomic_bert": "num_experts",
}
INSTEAD: Mapping[str, str] = {  # remedies for types that no class computes
    "internvl_chat": "use the repository of the same name that ends in -HF",
    "minimax_m1": "no checkpoint of it can be served; MiniMaxAI/MiniMax-Text-01-hf can",
    "minimax_text_01": "use MiniMaxAI/MiniMax-Text-01-hf",
}


def load_config(folder: Path) -> PreTrainedConfig:
    """Load the config of a checkpoint as that of the type that computes it.

    Raises:
        ModelError: the checkpoint needs code of its own, or settings that the other type's class does not have.
        ValueError, OSError, KeyError, TypeError: the config can't be used.
    """
    values = json.loads((folder / "config.json").read_text("utf-8"))
    if isinstance(values, dict):
        register_model_type(str(values.get("model_type")))
    served = _served_as(values)
    if served is None:
        _check_known(values, folder.name)
        for part in (values, values.get("text_config")) if isinstance(values, dict) else ():
            if isinstance(part, dict) and str(part.get("model_type")) in PRESUPPOSED:
                _check_settings(part, PRESUPPOSED[part["model_type"]], part["model_type"], folder.name)
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    _check_settings(values, served.required, served.model_type, folder.name)
    kept = {name: value for name, value in served.convert(values).items() if name not in {"auto_map", "model_type"}}
    config: PreTrainedConfig = CONFIG_MAPPING[served.model_type].from_dict(kept)
    config._name_or_path = str(folder)  # noqa: SLF001  (as from_pretrained sets it)
    return config


def is_served_as_another(folder: Path) -> bool:
    """Return True if the checkpoint's type is computed under another name."""
    return _served_as(json.loads((folder / "config.json").read_text("utf-8"))) is not None


def reads_images_alone(folder: Path) -> bool:
    """Return True if the checkpoint is an encoder of images, which has no tokenizer."""
    values = json.loads((folder / "config.json").read_text("utf-8"))
    return values.get("model_type") == "greenroom_moe" and bool(values.get("image_size"))


def _served_as(values: Any) -> ServedAs | None:
    if not isinstance(values, dict) or values.get("model_type") in CONFIG_MAPPING:
        return None
    by_architecture = (BY_ARCHITECTURE.get(name) for name in values.get("architectures") or ())
    return SERVED_AS.get(str(values.get("model_type"))) or next(filter(None, by_architecture), None)


def _check_settings(values: Values, required: Mapping[str, Any], model_type: str, name: str) -> None:
    """Refuse settings that a class of transformers does not compute; those of layers are lists."""
    for setting, wanted in required.items():
        given = values.get(setting, wanted)
        if any(each != wanted for each in (given if isinstance(given, list) else [given])):
            raise ModelError(
                f"{name} is a {values['model_type']} with {setting} {given!r}, which {model_type} of transformers does "
                f"not compute; use a checkpoint with {setting} {wanted!r}"
            )


def _check_known(values: Any, name: str) -> None:
    """Refuse a type that only code of the checkpoint would compute, or experts of it."""
    setting = EXPERTS_NOT_COMPUTED.get(str(values.get("model_type")), "") if isinstance(values, dict) else ""
    if setting and values.get(setting):
        raise ModelError(
            f"config.json of {name} can't be used: it is a {values['model_type']} with {setting} {values[setting]}, "
            f"but that class of transformers {transformers_version} has no experts, and code that a checkpoint brings "
            "(auto_map) is never run; use an encoder of a type that docs/models.md lists"
        )
    if not isinstance(values, dict) or "auto_map" not in values or values.get("model_type") in CONFIG_MAPPING:
        return
    model_type = str(values.get("model_type"))
    remedy = INSTEAD.get(model_type, "use a checkpoint of a type that docs/models.md lists")
    raise ModelError(
        f"config.json of {name} can't be used: transformers {transformers_version} has no {model_type}, and code that "
        f"a checkpoint brings (auto_map) is never run; {remedy}"
    )
