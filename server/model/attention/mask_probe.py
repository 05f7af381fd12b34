"""Reads the attention window of each layer from the mask that transformers would pass to it.

Some models pass their window to attention, some put it into the mask alone, and some mask by rules of their own. So
masks are made during a model's first pass. Later steps make none, since a mask takes the square of a step's tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from server.model.architecture import text_part
from server.model.attention.key_choice import KeyChoice
from server.model.attention.window import seen_keys
from server.model.errors import ModelError, NotBatchableError
from server.model.hooks import IMPLEMENTATION, attention_function, is_choice

PROBING = "greenroom_probe"
CHOOSING = "greenroom_choice_probe"  # the same for attention whose masks an indexer has taken keys from
RULE = "greenroom_rule"  # attribute of a mask that holds its window, as options of attention
MOST_KEYS = 1 << 14  # at which a rule is tried
SAMPLE = 64  # positions at which a rule without a window is tried
UNSUPPORTED_ARGUMENTS = ("position_bias", "block_indices", "sinks")  # they change what tokens attend to
REFUSAL = "its tokens see each other by a rule other than causality and a sliding window or chunks"


@contextmanager
def probe_masks(model: PreTrainedModel, probing: str = PROBING, implementation: str = IMPLEMENTATION) -> Iterator[None]:
    """Have a model make its masks, and pass the windows in them to attention.

    Args:
        probing: the implementation of attention meanwhile.
        implementation: that afterwards.
    """
    configs = (model.config, text_part(model).config)
    for config in configs:
        config._attn_implementation = {"": probing}  # noqa: SLF001
    try:
        yield
    finally:
        for config in configs:
            config._attn_implementation = {"": implementation}  # noqa: SLF001


def make_mask(
    *,
    q_length: int,
    kv_length: int,
    mask_function: Callable[..., Any],
    device: torch.device | str,
    local_size: int | None = None,
    **_: Any,
) -> torch.Tensor:
    """Return the mask of ``transformers.masking_utils.sdpa_mask``, ``(1, 1, q_length, kv_length)``, with its window.

    Raises:
        NotBatchableError: the mask is not a causal one within a window or a chunk.
    """
    reach = 2 * (local_size or SAMPLE)
    keys = torch.tensor(_sampled(reach), device=device)
    positions = torch.tensor(sorted({0, 1, reach // 2 - 1, reach // 2, reach // 2 + 1, reach}), device=device)[:, None]
    seen = torch.stack([torch.as_tensor(mask_function(0, 0, p, keys)).expand(len(keys)) for p in positions])
    for is_chunked in (False, True):
        if torch.equal(seen, seen_keys(positions, keys, local_size, is_chunked)):
            queries = torch.arange(q_length, device=device)[:, None]
            mask = seen_keys(queries, torch.arange(kv_length, device=device), local_size, is_chunked)[None, None]
            setattr(mask, RULE, {"sliding_window": local_size, "is_chunked": is_chunked})
            return mask
    raise NotBatchableError(REFUSAL)


def _sampled(reach: int) -> Sequence[int]:
    """Return the keys at which a rule is tried: all, or of a wide window those at its ends."""
    if reach <= MOST_KEYS:
        return range(reach + 1)
    ends = (0, reach // 2, reach)
    return sorted(
        {key for end in ends for key in range(end - MOST_KEYS // 8, end + MOST_KEYS // 8) if 0 <= key <= reach}
    )


def _attend_by_mask(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any = None, **kwargs: Any
) -> tuple[torch.Tensor, None]:
    """Call the attention function, with the mask's window if there is a mask.

    Raises:
        ModelError: a token would not see itself.
        NotBatchableError: the mask is not a causal one within a window, or an argument is not supported.
    """
    given = {name: kwargs.get(name) for name in UNSUPPORTED_ARGUMENTS}
    asked = next((name for name, each in given.items() if each is not None and not isinstance(each, KeyChoice)), None)
    if asked is not None:
        raise NotBatchableError(f"its attention takes {asked}, which Greenroom does not support")
    if is_choice(attention_mask):
        kwargs["indices"] = attention_mask
    elif attention_mask is not None:
        if not hasattr(attention_mask, RULE):
            raise NotBatchableError(REFUSAL)
        kwargs |= getattr(attention_mask, RULE)
    window = kwargs.get("sliding_window")
    if window is not None and window < 1:  # some types make masks that no layer uses
        raise ModelError(f"a layer has a window of {window} tokens, not 1 or more; download the checkpoint again")
    return attention_function(module, query, key, value, **kwargs)


def _attend_to_chosen(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any = None, **kwargs: Any
) -> tuple[torch.Tensor, None]:
    """Call the attention function with the keys of a mask ``(1, 1, tokens, keys)`` as those that were chosen."""
    return attention_function(module, query, key, value, **kwargs, indices=KeyChoice([attention_mask[0]]))


AttentionInterface.register(PROBING, _attend_by_mask)
AttentionInterface.register(CHOOSING, _attend_to_chosen)
ALL_MASK_ATTENTION_FUNCTIONS.register(CHOOSING, make_mask)
ALL_MASK_ATTENTION_FUNCTIONS.register(PROBING, make_mask)
