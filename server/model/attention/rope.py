"""Rotary embeddings: the frequencies of a model, and the longest sequence that they serve."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedConfig

from server.model.layer_settings import layer_values

log = logging.getLogger(__name__)

RECOMPUTED = "PhimoeRotaryEmbedding"  # the class of transformers that computes its frequencies anew on the host
RELATIVE_LENGTH = 2048  # tokens, for models with relative positions, which have no end


def max_length_of_one_rope(config: PreTrainedConfig) -> int:
    """Return the tokens of the longest sequence with the same rotary frequencies as every shorter one.

    "longrope" has two sets of frequencies, and transformers chooses one for all of a step by its furthest position
    (``modeling_rope_utils.dynamic_rope_update``). A sequence beyond the first set's length would rotate the queries of
    other sequences in its step by other angles than the keys in their caches.
    """
    kinds = []
    for parameters in layer_values(config, "rope_parameters"):
        kinds += [parameters, *(value for value in parameters.values() if isinstance(value, dict))]  # by type of layer
    lengths = [kind["original_max_position_embeddings"] for kind in kinds if kind.get("rope_type") == "longrope"]
    return int(min([max_positions(config), *lengths]))


def max_positions(config: PreTrainedConfig) -> int:
    """Return the tokens of the longest sequence that a model has positions for."""
    return min(map(int, filter(None, layer_values(config, "max_position_embeddings"))), default=RELATIVE_LENGTH)


def max_served_length(config: PreTrainedConfig, max_model_len: int | None = None) -> int:
    """Return the tokens of the longest sequence that can be served, if ``max_model_len`` is requested."""
    of_one, of_all = max_length_of_one_rope(config), max_positions(config)
    return of_all if max_model_len is not None and max_model_len > of_one else of_one


def apply_max_length(model: nn.Module, config: PreTrainedConfig, max_model_len: int | None) -> int:
    """Return ``max_served_length``, and prepare the model to serve it."""
    longest, of_one = max_served_length(config, max_model_len), max_length_of_one_rope(config)
    if longest > of_one:
        log.info("longrope: all sequences use the frequencies of those longer than %d tokens", of_one)
        _use_long_factors(model, longest - 1)
    elif max_positions(config) > of_one:
        log.info(
            "longrope: sequences limited to %d tokens; a larger --max-model-len changes the frequencies of all",
            of_one,
        )
    for module in model.modules():
        if type(module).__name__ == RECOMPUTED:
            module.forward = FixedAngles(module, is_long=longest > of_one)
    return longest


class FixedAngles:
    """The forward of PhiMoE's rotary embedding, whose frequencies and scale are the same for all that is served.

    In transformers it computes the frequencies on the host in each step, and reads the furthest position there to
    choose the scale.

    Args:
        is_long: positions beyond those of the first set of frequencies are served.
    """

    def __init__(self, module: Any, *, is_long: bool):
        frequencies, scale = module.rope_init_fn(module.config)
        parameters = module.config.rope_parameters
        if parameters["rope_type"] != "default":
            scale = parameters["long_mscale" if is_long else "short_mscale"]
        self._frequencies, self._scale = frequencies.to(module.inv_freq.device, torch.float32), float(scale)

    def __call__(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return cosines and sines in the dtype of ``x``, ``(rows, tokens, head_dim)`` of ``(rows, tokens)``."""
        half = position_ids[..., None].float() * self._frequencies
        angles = torch.cat((half, half), dim=-1)
        return (angles.cos() * self._scale).to(x.dtype), (angles.sin() * self._scale).to(x.dtype)


def _use_long_factors(model: nn.Module, far: int) -> None:
    """Make "longrope" use its second set of frequencies for every sequence, as vLLM does where longer ones may come.

    The furthest position of a step chooses the set. So each step gets a further position, ``far``, that is no token's.
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


def apply_nested_rope_base(config: PreTrainedConfig, written: Mapping[str, Any]) -> None:
    """Apply the base of rotary frequencies in a part of config.json, such as ``attn_config`` of published DBRX.

    transformers reads the base from the top level alone (``RotaryEmbeddingConfigMixin``), and else uses its default.

    Args:
        config: as transformers read it.
        written: the content of the file.
    """
    if not getattr(config, "rope_parameters", None) or any(name.startswith("rope_") for name in written):
        return
    for name, part in config.sub_configs.items():
        base = (written.get(name) or {}).get("rope_theta")
        if base is not None and not hasattr(part, "rope_parameters"):  # else the part has its own embeddings
            config.rope_parameters["rope_theta"] = float(base)
