"""How positions are told apart: by which frequencies, and up to what length by the same ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedConfig

RELATIVE_LENGTH = 2048  # tokens, where positions are told by distance alone and have no end


def longest_of_one_rope(config: PreTrainedConfig) -> int:
    """Tokens of the longest sequence whose rotary frequencies are those of every shorter one.

    "longrope" has two sets of frequencies, and transformers chooses one for a whole step by its furthest position
    (``modeling_rope_utils.dynamic_rope_update``). Past the first set's length, a sequence would turn the queries of its
    company by other angles than the keys that are in their caches.
    """
    parameters = getattr(config, "rope_parameters", None) or {}
    kinds = [parameters, *(value for value in parameters.values() if isinstance(value, dict))]  # or by type of layer
    lengths = [kind["original_max_position_embeddings"] for kind in kinds if kind.get("rope_type") == "longrope"]
    longest = getattr(config, "max_position_embeddings", None) or RELATIVE_LENGTH
    return int(min([longest, *lengths]))


def take_base_of_a_part(config: PreTrainedConfig, written: Mapping[str, Any]) -> None:
    """Let rotary frequencies have the base that a config.json has in a part, as published DBRX has in ``attn_config``.

    transformers looks for it at the top alone (``RotaryEmbeddingConfigMixin``), and else takes its default.

    Args:
        config: what transformers made of it.
        written: what is in the file.
    """
    if not getattr(config, "rope_parameters", None) or any(name.startswith("rope_") for name in written):
        return
    for name, part in config.sub_configs.items():
        base = (written.get(name) or {}).get("rope_theta")
        if base is not None and not hasattr(part, "rope_parameters"):  # else it has rotary embeddings of its own
            config.rope_parameters["rope_theta"] = float(base)
