"""The window of a layer is read from the rule of its mask, whatever its length."""

from __future__ import annotations

import pytest
import torch
from transformers.masking_utils import chunked_causal_mask_function, sliding_window_causal_mask_function

from server.model.attention import mask_probe
from server.model.attention.mask_probe import MOST_KEYS, make_mask
from server.model.errors import NotBatchableError

WINDOWS = [6, MOST_KEYS, 1 << 31]


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_window_of_any_length_is_found_with_few_keys(window: int, is_chunked: bool) -> None:
    chunks = chunked_causal_mask_function(window, torch.zeros(1, dtype=torch.int64))
    rule = chunks if is_chunked else sliding_window_causal_mask_function(window)
    mask = make_mask(q_length=2, kv_length=2, mask_function=rule, device="cpu", local_size=window)
    assert getattr(mask, mask_probe.RULE) == {"sliding_window": window, "is_chunked": is_chunked}


@pytest.mark.parametrize("window", WINDOWS)
def test_a_mask_of_another_window_than_it_is_said_to_have_is_not_batched(window: int) -> None:
    rule = sliding_window_causal_mask_function(window + 1)
    with pytest.raises(NotBatchableError):
        make_mask(q_length=2, kv_length=2, mask_function=rule, device="cpu", local_size=window)
