"""Records what attention modules are called with, and what they call attention with, to try other ways to run them."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from server.model.hooks import AttentionOptions, use_hooks
from server.model.transformers_hooks.probe import IsolatedTokens

TOLERANCES = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}  # of a result, relative to its largest
PAIR = 2  # cosines and sines; an output and attention weights


@dataclass(frozen=True)
class AttentionCall:
    """Arguments of a call of attention; queries are ``(heads, tokens, key_dim)``."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    options: AttentionOptions


@dataclass(frozen=True)
class RecordedCall:
    """A call of a module, and that of attention in it."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: torch.Tensor
    attention: AttentionCall

    @property
    def hidden(self) -> torch.Tensor:
        return hidden_of(self.args, self.kwargs)

    @property
    def angles(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        return angles_of(self.args, self.kwargs)


class _Recorder(IsolatedTokens):
    """Hooks that record what each layer calls attention with."""

    def __init__(self) -> None:
        self.seen: dict[int, AttentionCall] = {}

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: AttentionOptions
    ) -> torch.Tensor:
        self.seen[layer] = AttentionCall(query, key, value, options)
        return super().attend(layer, query, key, value, options)


def record_calls(modules: Collection[Any], run: Callable[[], None]) -> dict[nn.Module, RecordedCall]:
    """Return the calls of those modules that call attention, and return a pair whose first part is their output.

    Args:
        modules: attention modules.
        run: runs some tokens through the model, each of which attends to itself alone.
    """
    calls: dict[Any, tuple[tuple[Any, ...], dict[str, Any], Any]] = {}

    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        calls[module] = args, kwargs, output

    handles = [module.register_forward_hook(keep, with_kwargs=True) for module in modules]
    recorder = _Recorder()
    try:
        with use_hooks(recorder):
            run()
    finally:
        for handle in handles:
            handle.remove()
    return {
        module: RecordedCall(args, kwargs, output[0], recorder.seen[module.layer_idx])
        for module, (args, kwargs, output) in calls.items()
        if module.layer_idx in recorder.seen and isinstance(output, tuple) and len(output) == PAIR
    }


def hidden_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """Return the rows that a module is called with."""
    hidden: torch.Tensor = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
    return hidden


def angles_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Return the cosines and sines that a module is called with."""
    for value in (*kwargs.values(), *args):
        if isinstance(value, tuple) and len(value) == PAIR and all(isinstance(each, torch.Tensor) for each in value):
            return value
    return None


def are_of_rows(angles: tuple[torch.Tensor, torch.Tensor], count: int) -> bool:
    """Return whether cosines and sines are of so many tokens, with contiguous rows."""
    return all(each.shape[:-1] == (1, count) and each.stride(-1) == 1 for each in angles)


def is_near(own: torch.Tensor, other: torch.Tensor, dtype: torch.dtype | None = None) -> bool:
    """Return whether a result is that of a module but for rounding.

    Args:
        dtype: of the rows that it was computed from, if it is in a wider one.
    """
    if own.shape != other.shape:
        return False
    error = (own.float() - other.float()).abs().max() / other.float().abs().max().clamp_min(1e-30)
    return float(error) <= TOLERANCES[dtype or other.dtype]
