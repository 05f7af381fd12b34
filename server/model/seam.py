"""The seam to transformers: attention and experts of any model come to whatever runs the current step.

transformers looks both functions up by name in its registries, so no model's code is touched. Models differ in what
they pass along, but not in when they call; the step that is running is therefore found through the thread's context.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import nn
from transformers import AttentionInterface
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from server.kernels.expert import ExpertsModule

IMPLEMENTATION = "greenroom"


@dataclass(frozen=True)
class AttentionOptions:
    """What a model asks of attention besides queries, keys and values."""

    scaling: float
    sliding_window: int | None = None  # tokens a query sees, its own included
    is_chunked: bool = False  # these are its own chunk's, instead of the last ones (``windows.oldest_seen``)
    sinks: torch.Tensor | None = None  # (heads,) a logit per head that takes weight and gives no value (gpt-oss)
    softcap: float | None = None


class ExpertsSeam(Protocol):
    """One forward pass of a trunk whose attention is its own."""

    def run_experts(
        self, module: ExpertsModule, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """``(tokens, hidden)``, ``(tokens, k)`` and ``(tokens, k)`` give ``(tokens, hidden)``."""


class Seam(ExpertsSeam, Protocol):
    """One forward pass of the trunk."""

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: AttentionOptions
    ) -> torch.Tensor:
        """Attention over the step's flattened tokens.

        ``query (heads, tokens, key_dim)``, ``key (kv_heads, tokens, key_dim)``, ``value (kv_heads, tokens, value_dim)``
        give ``(tokens, heads, value_dim)``.
        """

    def expand(self, projection: nn.Module, latent: torch.Tensor) -> torch.Tensor:
        """What an MLA layer takes for its keys and values; it calls ``attend`` with them next.

        ``projection`` is the ``mla.LatentProjection`` that asks.
        ``(..., rank)`` gives ``(..., heads * (nope_dim + value_dim))``.
        """


_current: ContextVar[Seam] = ContextVar("greenroom_seam")


@contextmanager
def running(seam: ExpertsSeam) -> Iterator[None]:
    """Let a seam answer for every model that runs in this thread's context."""
    token = _current.set(cast("Seam", seam))  # what attention asks of it is asked by models built for that alone
    try:
        yield
    finally:
        _current.reset(token)


def current_seam() -> Seam:
    return _current.get()


def attention_function(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None = None,  # noqa: ARG001  causality is the seam's own affair
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """What models call by the name that is registered below."""
    scaling = kwargs.get("scaling")
    options = AttentionOptions(
        scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
        sliding_window=kwargs.get("sliding_window"),
        is_chunked=kwargs.get("is_chunked", False),
        sinks=kwargs.get("s_aux"),
        softcap=kwargs.get("softcap"),
    )
    output = current_seam().attend(module.layer_idx, query[0], key[0], value[0], options)
    return output.contiguous().unsqueeze(0), None


def _experts(
    module: ExpertsModule, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    return current_seam().run_experts(module, hidden_states, top_k_index, top_k_weights)


AttentionInterface.register(IMPLEMENTATION, attention_function)
ALL_EXPERTS_FUNCTIONS.register(IMPLEMENTATION, _experts)
