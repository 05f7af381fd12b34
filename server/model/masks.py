"""How far back each layer sees, by the mask that transformers would give it.

Some models hand their window to attention, some put it into the mask alone, and some mask by rules of their own. So
masks are made while a model is looked at. Afterwards none is: it would cost every step the square of its tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from .architecture import text_part
from .errors import NotBatchableError
from .seam import IMPLEMENTATION, attention_function
from .windows import oldest_seen

PROBING = "greenroom_probe"
RULE = "greenroom_rule"  # the attribute by which a mask tells its window, as options of attention
SAMPLE = 64  # positions at which a rule without a window is looked at
FOREIGN = ("position_bias", "indices", "block_indices", "sinks")  # arguments that change what is attended to
REFUSAL = "its tokens see each other by a rule other than causality and a sliding window or chunks"


@contextmanager
def with_masks(model: PreTrainedModel) -> Iterator[None]:
    """Let a model make its masks, and give attention the windows that are in them."""
    configs = (model.config, text_part(model).config)
    for config in configs:
        config._attn_implementation = {"": PROBING}  # noqa: SLF001
    try:
        yield
    finally:
        for config in configs:
            config._attn_implementation = {"": IMPLEMENTATION}  # noqa: SLF001


def _make_mask(
    *,
    q_length: int,
    kv_length: int,
    mask_function: Callable[..., Any],
    device: torch.device | str,
    local_size: int | None = None,
    **_: Any,
) -> torch.Tensor:
    """What ``transformers.masking_utils.sdpa_mask`` gives, ``(1, 1, q_length, kv_length)``, with its window.

    Raises:
        NotBatchableError: the mask is not a causal one within a window or a chunk.
    """
    reach = 2 * (local_size or SAMPLE)
    keys = torch.arange(reach + 1, device=device)
    positions = torch.tensor(sorted({0, 1, reach // 2 - 1, reach // 2, reach // 2 + 1, reach}), device=device)[:, None]
    seen = torch.stack([torch.as_tensor(mask_function(0, 0, p, keys)).expand(len(keys)) for p in positions])
    for is_chunked in (False, True):
        if torch.equal(seen, seen_keys(positions, keys, local_size, is_chunked)):
            queries = torch.arange(q_length, device=device)[:, None]
            mask = seen_keys(queries, torch.arange(kv_length, device=device), local_size, is_chunked)[None, None]
            setattr(mask, RULE, {"sliding_window": local_size, "is_chunked": is_chunked})
            return mask
    raise NotBatchableError(REFUSAL)


def _attend_by_mask(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any = None, **kwargs: Any
) -> tuple[torch.Tensor, None]:
    """The attention function, with the mask's window if there is a mask.

    Raises:
        NotBatchableError: the mask is not a causal one within a window, or the model wants more than that.
    """
    asked = next((name for name in FOREIGN if kwargs.get(name) is not None), None)
    if asked is not None:
        raise NotBatchableError(f"attention has to take {asked} into account")
    if attention_mask is not None:
        if not hasattr(attention_mask, RULE):
            raise NotBatchableError(REFUSAL)
        kwargs |= getattr(attention_mask, RULE)
    return attention_function(module, query, key, value, **kwargs)


def seen_keys(queries: torch.Tensor, keys: torch.Tensor, window: int | None, is_chunked: bool = False) -> torch.Tensor:
    """Which keys each query sees, by their positions, of shapes that go together."""
    causal = keys <= queries
    return causal if window is None else causal & (keys >= oldest_seen(queries, window, is_chunked))


AttentionInterface.register(PROBING, _attend_by_mask)
ALL_MASK_ATTENTION_FUNCTIONS.register(PROBING, _make_mask)
