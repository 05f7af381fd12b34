"""Passes positions to attention that scales its queries by them (``attn_temperature_tuning``).

Such a module (``Llama4TextAttention``) takes its first position from the length of its cache. A step has tokens of many
sequences and no cache; here the module's layer is called with an object in the place of a cache that knows the position
of each row.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class PositionCache:
    """Stands in for a cache: keeps nothing, and knows the position of each row of the step.

    Args:
        position_ids: of the step's rows, ``(1, tokens)``.
    """

    def __init__(self, position_ids: torch.Tensor):
        rows = torch.arange(position_ids.shape[-1], device=position_ids.device)
        self._lengths = position_ids[0] - rows

    def get_seq_length(self, layer_idx: int = 0) -> torch.Tensor:
        """Return the length that makes each row's position right, ``(tokens,)``: its position less its index."""
        del layer_idx
        return self._lengths

    def update(
        self, key: torch.Tensor, value: torch.Tensor, layer_idx: int, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the step's own keys and values unchanged."""
        del layer_idx, kwargs
        return key, value


def pass_positions(model: nn.Module) -> None:
    """Pass a ``PositionCache`` to every layer whose attention scales queries by position."""
    for name, module in model.named_modules():
        if getattr(module, "attn_temperature_tuning", False):
            layer = model.get_submodule(name.rpartition(".")[0])
            layer.register_forward_pre_hook(_add_position_cache, with_kwargs=True)


def _add_position_cache(
    _layer: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return arguments, {**options, "cache": PositionCache(options["position_ids"])}
