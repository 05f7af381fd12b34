"""Attention that is sharpened by position, which its module takes from the cache it is called with.

A module with ``attn_temperature_tuning`` (``Llama4TextAttention``) scales its queries by where they are, and takes the
first to come right after what its cache holds. A step has tokens of many sequences and passes no cache; here its layer
is given something in a cache's place that tells the truth.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class Whereabouts:
    """In a cache's place: it keeps nothing, and knows where each row of the step is.

    Args:
        position_ids: of the step's rows, ``(1, tokens)``.
    """

    def __init__(self, position_ids: torch.Tensor):
        rows = torch.arange(position_ids.shape[-1], device=position_ids.device)
        self._ahead = position_ids[0] - rows

    def get_seq_length(self, layer_idx: int = 0) -> torch.Tensor:
        """What each row's number lacks of its position, ``(tokens,)``."""
        del layer_idx
        return self._ahead

    def update(
        self, key: torch.Tensor, value: torch.Tensor, layer_idx: int, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The step's own keys and values, as they are."""
        del layer_idx, kwargs
        return key, value


def tell_positions(model: nn.Module) -> None:
    """Let every layer whose attention is tuned by position know the positions of its rows."""
    for name, module in model.named_modules():
        if getattr(module, "attn_temperature_tuning", False):
            layer = model.get_submodule(name.rpartition(".")[0])
            layer.register_forward_pre_hook(_pass_whereabouts, with_kwargs=True)


def _pass_whereabouts(
    _layer: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return arguments, {**options, "cache": Whereabouts(options["position_ids"])}
