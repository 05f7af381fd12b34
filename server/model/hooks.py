"""Hooks into transformers: attention and experts of any model call the hooks of the current step.

transformers looks both functions up by name in its registries, so no model's code is changed. Models pass different
arguments along, so the hooks of the current step are found through the thread's context (``use_hooks``).
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
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from server.kernels.expert import ExpertsModule

IMPLEMENTATION = "greenroom"
INDEXED_IMPLEMENTATION = "greenroom_indexed"  # the same for models whose indexers are called with masks


@dataclass(frozen=True)
class AttentionOptions:
    """The parameters of attention besides queries, keys and values."""

    scaling: float
    sliding_window: int | None = None  # tokens a query sees, its own included
    is_chunked: bool = False  # the window is a fixed chunk instead of a sliding one (``window.oldest_seen``)
    sinks: torch.Tensor | None = None  # (heads,) or (heads, tokens) logits that take weight and have no value (gpt-oss)
    softcap: float | None = None
    bias: torch.Tensor | None = None  # (heads, tokens, keys), added to scores; of a complete sequence
    chosen: Any = None  # (tokens, k) positions that an indexer chose for each token, or a ``KeyChoice``; None for all


class ExpertHooks(Protocol):
    """Hooks of a forward pass whose attention is transformers' own."""

    def run_experts(
        self, module: ExpertsModule, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """Run experts: ``(tokens, hidden)``, ``(tokens, k)`` and ``(tokens, k)`` to ``(tokens, hidden)``."""


class TrunkHooks(ExpertHooks, Protocol):
    """Hooks of a forward pass of the trunk."""

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: AttentionOptions
    ) -> torch.Tensor:
        """Compute attention over the step's flattened tokens, ``(tokens, heads, value_dim)``.

        Args:
            query: ``(heads, tokens, key_dim)``.
            key: ``(kv_heads, tokens, key_dim)``.
            value: ``(kv_heads, tokens, value_dim)``.
        """

    def expand(self, projection: nn.Module, latent: torch.Tensor) -> torch.Tensor:
        """Return the keys and values of an MLA layer, with which the layer calls ``attend`` next.

        Args:
            projection: the ``mla.LatentProjection`` that calls.
            latent: ``(..., rank)``.

        Returns:
            ``(..., heads * (nope_dim + value_dim))``.
        """

    def choose_keys(self, call: Any) -> Any:
        """Run an indexer (``key_choice.IndexerCall``); return what its layer passes to ``attend`` as ``chosen``."""


_current: ContextVar[TrunkHooks] = ContextVar("greenroom_hooks")


@contextmanager
def use_hooks(hooks: ExpertHooks) -> Iterator[None]:
    """Use these hooks for every model that runs in this thread's context."""
    token = _current.set(cast("TrunkHooks", hooks))  # only models built for our attention call its hooks
    try:
        yield
    finally:
        _current.reset(token)


def current_hooks() -> TrunkHooks:
    return _current.get()


def attention_function(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any = None,  # what an indexer chose, or unused: the hooks apply causality themselves
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Call the current hooks; models find this function by the name that is registered below."""
    scaling = kwargs.get("scaling")
    options = AttentionOptions(
        scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
        sliding_window=kwargs.get("sliding_window"),
        is_chunked=kwargs.get("is_chunked", False),
        sinks=kwargs.get("s_aux"),
        softcap=kwargs.get("softcap"),
        bias=None if kwargs.get("position_bias") is None else kwargs["position_bias"][0],
        chosen=_chosen(kwargs, attention_mask),
    )
    output = current_hooks().attend(module.layer_idx, query[0], key[0], value[0], options)
    return output.contiguous().unsqueeze(0), None


def is_choice(mask: Any) -> bool:
    """Return whether an attention got what an indexer chose in the place of a mask."""
    return mask.dtype == torch.int32 if isinstance(mask, torch.Tensor) else hasattr(mask, "masks")


def _chosen(kwargs: dict[str, Any], mask: Any) -> Any:
    """Return the keys that an indexer chose, of an attention's arguments."""
    chosen = next((kwargs[name] for name in ("indices", "block_indices") if kwargs.get(name) is not None), None)
    chosen = mask if chosen is None and is_choice(mask) else chosen
    return chosen[0] if isinstance(chosen, torch.Tensor) else chosen


def _experts(
    module: ExpertsModule, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    return current_hooks().run_experts(module, hidden_states, top_k_index, top_k_weights)


def no_mask(**_: Any) -> torch.Tensor:
    """Stand in for a mask, of which layers with an indexer take a part before they call it."""
    return torch.ones((1, 1, 1, 1), dtype=torch.bool)


AttentionInterface.register(IMPLEMENTATION, attention_function)
AttentionInterface.register(INDEXED_IMPLEMENTATION, attention_function)
ALL_MASK_ATTENTION_FUNCTIONS.register(INDEXED_IMPLEMENTATION, no_mask)
ALL_EXPERTS_FUNCTIONS.register(IMPLEMENTATION, _experts)
