"""The attention function and the masks of models whose attention modules run sequence by sequence."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from server.model.attention.mask_probe import CHOOSING, RULE, make_mask, probe_masks
from server.model.attention.span_attention import attend_span_reference
from server.model.errors import NotBatchableError
from server.model.hooks import attention_function, no_mask

IMPLEMENTATION = "greenroom_by_sequence"
PROBING = "greenroom_by_sequence_probe"


def _attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Compute the attention of one sequence, or of one token of several, as the modules' own eager functions do.

    Args:
        query: ``(sequences, heads, tokens, dim)``.
        key, value: ``(sequences, kv_heads, keys, dim)``, of all that the tokens see.
        attention_mask: ``(sequences, 1, tokens, keys)``, added to scores.
    """
    del module
    (count, heads), kv_heads, scaling = query.shape[:2], key.shape[1], kwargs.get("scaling")
    added = attention_mask
    if count > 1:  # as if all heads were of one sequence
        query, key, value = (each.flatten(0, 1).unsqueeze(0) for each in (query, key, value))
        added = None if added is None else added.repeat_interleave(kv_heads, 0)
    bias = kwargs.get("position_bias")  # (sequences, heads, tokens, keys)
    if bias is not None:
        bias = bias.reshape(count * kv_heads, heads // kv_heads, *bias.shape[2:])
        added = bias if added is None else added + bias
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    output, lse = attend_span_reference(query, key, value, scaling, kwargs.get("softcap"), mask=added)
    output, lse = (each.view(count, heads, *each.shape[2:]) for each in (output, lse))
    sinks = kwargs.get("sinks")  # of each token, (sequences, heads, tokens, 1)
    if sinks is None and kwargs.get("s_aux") is not None:
        sinks = kwargs["s_aux"].view(1, -1, 1, 1)
    if sinks is not None:
        output = output * (lse.unsqueeze(-1) - sinks.float()).sigmoid().to(output.dtype)
    return output.transpose(1, 2).contiguous(), None


def _attend_probing(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Compute the attention of one sequence in a first pass.

    Attention to keys of each token alone, but for biases of its scores, goes to the hooks: the kernels may have it.
    """
    if kwargs.get("position_bias") is None:
        return _attend(module, query, key, value, attention_mask, **kwargs)
    if kwargs.get("sinks") is not None:
        kwargs["s_aux"] = kwargs["sinks"][0].squeeze(-1)  # (heads, tokens)
    return attention_function(module, query, key, value, **kwargs | getattr(attention_mask, RULE, {}))


def probe_sequence_masks(model: PreTrainedModel) -> AbstractContextManager[None]:
    """Have a model make its masks for a first pass over one sequence; afterwards it makes none."""
    return probe_masks(model, PROBING, IMPLEMENTATION)


def probe_chosen_masks(model: PreTrainedModel) -> AbstractContextManager[None]:
    """Have a model make its masks, and pass the keys that its indexers choose to the hooks of attention."""
    return probe_masks(model, CHOOSING, IMPLEMENTATION)


def as_added(seen: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return a mask of seen keys, bool ``(..., tokens, keys)``, as numbers to add, ``(sequences, 1, tokens, keys)``."""
    least = torch.finfo(dtype).min
    added = torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, least)
    return added.view(-1, 1, *seen.shape[-2:])


def _make_added_mask(*, dtype: torch.dtype = torch.float32, **kwargs: Any) -> torch.Tensor:
    """Return the mask of a first pass, with its rule.

    A prompt sees all of itself where a window is for the answer alone.
    """
    window = kwargs.get("local_size")
    try:
        mask = make_mask(**kwargs)
        rule = getattr(mask, RULE)
    except NotBatchableError:
        if window is None:
            raise
        mask = make_mask(**kwargs | {"local_size": None})
        rule = {"sliding_window": window, "sees_prompt": True}
    added = as_added(mask[0, 0], dtype)
    setattr(added, RULE, rule)
    return added


AttentionInterface.register(IMPLEMENTATION, _attend)
AttentionInterface.register(PROBING, _attend_probing)
ALL_MASK_ATTENTION_FUNCTIONS.register(IMPLEMENTATION, no_mask)
ALL_MASK_ATTENTION_FUNCTIONS.register(PROBING, _make_added_mask)
