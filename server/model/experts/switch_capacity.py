"""The capacity of Switch routers: set by a server, and the tokens counted that it drops."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from torch import nn

from server.model.errors import ModelError

TRANSFORMERS = "SwitchTransformersTop1Router"  # its ``expert_capacity`` is a number of tokens
OURS = "SwitchRouter"  # its ``capacity_factor`` is what it says


def set_switch_capacity(model: nn.Module, factor: float) -> None:
    """Let each expert of a model's Switch routers take ``factor`` times its even share of tokens.

    Routers of transformers count the tokens of a call: those of one sequence, as such a model runs one at a time.

    Raises:
        ModelError: the model has no Switch router, or its decoder can't use a capacity.
    """
    name, routers = type(model).__name__, list(_switch_routers(model))
    if not routers:
        raise ModelError(f"--switch-capacity: {name} has no Switch router; leave it out")
    for router in routers:
        if type(router).__name__ == TRANSFORMERS:
            router.register_forward_pre_hook(lambda module, args: _resize(module, args, factor))
        elif not getattr(model, "packs_sequences", False):
            raise ModelError(
                f"--switch-capacity: {name} is a decoder, and a capacity goes by the number of tokens, of which some "
                "are not written yet; leave it out"
            )
        else:
            router.capacity_factor = factor


class SwitchDrops:
    """Counts the tokens that the Switch routers of transformers drop.

    Args:
        model: whose routers are observed; it may have none.
    """

    def __init__(self, model: nn.Module):
        self._count = 0
        for router in _switch_routers(model):
            if type(router).__name__ == TRANSFORMERS:
                router.register_forward_hook(self._note)

    def take(self) -> int:
        """Return the tokens dropped since the last call, once for each layer."""
        count, self._count = self._count, 0
        return count

    def _note(self, _router: Any, _args: Any, output: Any) -> None:
        chosen = output[0]  # (..., experts), all zero for a dropped token
        self._count += int((chosen.sum(-1) == 0).sum())


def _switch_routers(model: nn.Module) -> Iterator[Any]:
    return (module for module in model.modules() if type(module).__name__ in {TRANSFORMERS, OURS})


def _resize(router: Any, args: tuple[Any, ...], factor: float) -> None:
    num_tokens = math.prod(args[0].shape[:-1])
    router.expert_capacity = math.ceil(num_tokens / router.num_experts * factor)
