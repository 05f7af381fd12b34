"""Records how attention modules are called, and how they call attention."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from server.model.blocks.workspace import PairAngles
from server.model.hooks import AttentionOptions, use_hooks
from server.model.transformers_hooks.probe import IsolatedTokens

PAIR = 2  # cosines and sines; an output and attention weights


@dataclass(frozen=True)
class RecordedCall:
    """A call of a module, and that of attention in it."""

    angles: tuple[torch.Tensor, torch.Tensor] | None  # of the tokens' positions
    query: torch.Tensor  # (heads, tokens, key_dim)
    key: torch.Tensor
    value: torch.Tensor
    options: AttentionOptions

    def num_rotated(self, columns: PairAngles) -> int:
        """Return the numbers of a head that its cosines rotate; 0 if the kernels can't read these.

        Args:
            columns: that give one angle a pair.
        """
        count = self.query.shape[1]
        if self.angles is None or any(each.shape[:-1] != (1, count) or each.stride(-1) != 1 for each in self.angles):
            return 0
        cosines, _ = self.angles
        return 2 * columns.of(cosines[0]).shape[1]


def step_of(columns: PairAngles) -> int:
    """Return the numbers of a table of cosines from one angle to the next."""
    return 2 if columns is PairAngles.EVERY_OTHER else 1


class _Recorder(IsolatedTokens):
    """Hooks that record what each layer calls attention with."""

    def __init__(self) -> None:
        self.seen: dict[int, tuple[torch.Tensor, torch.Tensor, torch.Tensor, AttentionOptions]] = {}

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: AttentionOptions
    ) -> torch.Tensor:
        self.seen[layer] = query, key, value, options
        return super().attend(layer, query, key, value, options)


def record_calls(modules: Collection[Any], run: Callable[[], None]) -> dict[nn.Module, RecordedCall]:
    """Return the calls of those modules that call attention, and return a pair whose first part is their output.

    Args:
        modules: attention modules.
        run: runs some tokens through the model, each of which attends to itself alone.
    """
    calls: dict[Any, tuple[torch.Tensor, torch.Tensor] | None] = {}

    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if isinstance(output, tuple) and len(output) == PAIR:
            calls[module] = angles_of(args, kwargs)

    handles = [module.register_forward_hook(keep, with_kwargs=True) for module in modules]
    recorder = _Recorder()
    try:
        with use_hooks(recorder):
            run()
    finally:
        for handle in handles:
            handle.remove()
    return {
        module: RecordedCall(angles, *recorder.seen[module.layer_idx])
        for module, angles in calls.items()
        if module.layer_idx in recorder.seen
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
