"""Finds routers whose experts are those of tokens in a table; their logits give weights alone (DeepSeek-V4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from server.model.blocks.capture import Routing
from server.model.experts.router import RouterWeights


@dataclass(frozen=True)
class HashRouter:
    """A router with a table."""

    weights: RouterWeights
    table: torch.Tensor  # int32 (vocabulary, k)


def find_hash_router(
    module: Any, name: str, num_experts: int, tokens: Sequence[int], routing: Routing
) -> HashRouter | None:
    """Return the parts of a router with a table of tokens' experts; None if it is of another kind.

    Args:
        module: that owns the router's parameters.
        name: of the module in the model.
        num_experts: of the layer.
        tokens: of a call of the layer.
        routing: what its experts got in that call.
    """
    top_k, hidden_size = routing.top_k_index.shape[1], routing.hidden_states.shape[1]
    tables = [each for each in module.buffers() if not each.is_floating_point() and each.ndim == 2]  # noqa: PLR2004
    parameters = dict(module.named_parameters())
    if len(tables) != 1 or [tuple(each.shape) for each in parameters.values()] != [(num_experts, hidden_size)]:
        return None
    (table,), ((own_name, weight),) = tables, parameters.items()
    if table.shape[1] != top_k or len(table) <= max(tokens):
        return None
    if not torch.equal(table[torch.tensor(tokens)], routing.top_k_index.to(table.dtype)):
        return None
    names = {"weight": f"{name}.{own_name}"}
    weights = RouterWeights(weight, None, None, F.softmax, names, top_k)
    return HashRouter(weights, table.to(torch.int32).contiguous())
