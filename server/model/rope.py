"""How long a sequence may be before its length changes how positions are told apart."""

from __future__ import annotations

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
