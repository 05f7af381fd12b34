"""How positions are told apart: by which frequencies, and up to what length by the same ones."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedConfig

log = logging.getLogger(__name__)

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
    return int(min([longest_of_all(config), *lengths]))


def longest_of_all(config: PreTrainedConfig) -> int:
    """Tokens of the longest sequence that a model has positions for."""
    return int(getattr(config, "max_position_embeddings", None) or RELATIVE_LENGTH)


def longest_served(config: PreTrainedConfig, max_model_len: int | None = None) -> int:
    """Tokens of the longest sequence that can be served, where one of ``max_model_len`` is asked for."""
    of_one, of_all = longest_of_one_rope(config), longest_of_all(config)
    return of_all if max_model_len is not None and max_model_len > of_one else of_one


def settle_length(model: nn.Module, config: PreTrainedConfig, max_model_len: int | None) -> int:
    """What ``longest_served`` says; the model is made to serve it."""
    longest, of_one = longest_served(config, max_model_len), longest_of_one_rope(config)
    if longest > of_one:
        log.info("longrope: sequences of any length take the frequencies of those longer than %d tokens", of_one)
        _take_long_factors(model, longest - 1)
    elif longest_of_all(config) > of_one:
        log.info("longrope: up to %d tokens; --max-model-len takes the frequencies of longer ones for all", of_one)
    return longest


def _take_long_factors(model: nn.Module, far: int) -> None:
    """Let "longrope" take its second set of frequencies for every sequence, as vLLM does where longer ones may come.

    The set is chosen by the furthest position of a step. So there is always one that is far, of a token that is none.
    """

    def add(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if "position_ids" in kwargs:
            return args, kwargs | {"position_ids": F.pad(kwargs["position_ids"], (0, 1), value=far)}
        rows, positions, *others = args
        return (rows, F.pad(positions, (0, 1), value=far), *others), kwargs

    def drop(_module: Any, _args: Any, output: Any) -> Any:
        return tuple(part[..., :-1, :] for part in output) if isinstance(output, tuple) else output[..., :-1, :]

    for module in model.modules():
        kinds = getattr(module, "rope_type", None)
        if "longrope" in (kinds.values() if isinstance(kinds, dict) else [kinds]):
            module.register_forward_pre_hook(add, with_kwargs=True)
            module.register_forward_hook(drop)


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
