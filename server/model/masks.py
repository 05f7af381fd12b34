"""How far back each layer sees, by the mask that transformers would give it.

Some models hand their window to attention, some put it into the mask alone, and some mask by rules of their own. So
masks are made while a model is looked at. Afterwards none is: it would cost every step the square of its tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AttentionInterface, PreTrainedConfig
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from .errors import NotBatchableError
from .seam import attention_function

PROBING = "greenroom_probe"
WINDOW = "greenroom_window"  # the attribute by which a mask tells its window
SAMPLE = 64  # positions at which a rule without a window is looked at
FOREIGN = ("position_bias", "indices", "block_indices", "sinks")  # arguments that change what is attended to
REFUSAL = "its tokens see each other by a rule other than causality and a sliding window"


@contextmanager
def with_masks(config: PreTrainedConfig) -> Iterator[None]:
    """Let a model make its masks, and give attention the windows that are in them."""
    usual = config._attn_implementation  # noqa: SLF001
    config._attn_implementation = PROBING  # noqa: SLF001
    try:
        yield
    finally:
        config._attn_implementation = usual  # noqa: SLF001


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
        NotBatchableError: the mask is not a causal one within a window.
    """
    reach = 2 * (local_size or SAMPLE)
    keys = torch.arange(reach + 1, device=device)
    for query in {0, 1, reach // 2 - 1, reach // 2, reach // 2 + 1, reach}:
        position = torch.tensor(query, device=device)
        seen = torch.as_tensor(mask_function(0, 0, position, keys)).expand(len(keys))
        if not torch.equal(seen, _rule(position, keys, local_size)):
            raise NotBatchableError(REFUSAL)
    queries = torch.arange(q_length, device=device)[:, None]
    mask = _rule(queries, torch.arange(kv_length, device=device), local_size)[None, None]
    setattr(mask, WINDOW, local_size)
    return mask


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
        if not hasattr(attention_mask, WINDOW):
            raise NotBatchableError(REFUSAL)
        kwargs["sliding_window"] = getattr(attention_mask, WINDOW)
    return attention_function(module, query, key, value, **kwargs)


def _rule(query: torch.Tensor, key: torch.Tensor, window: int | None) -> torch.Tensor:
    causal = key <= query
    return causal if window is None else causal & (key > query - window)


AttentionInterface.register(PROBING, _attend_by_mask)
ALL_MASK_ATTENTION_FUNCTIONS.register(PROBING, _make_mask)
