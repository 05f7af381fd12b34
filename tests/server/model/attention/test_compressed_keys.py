"""DeepSeek-V4's compressed keys are kept in blocks, with the bits that transformers' own cache gives."""

from __future__ import annotations

from itertools import accumulate, pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache

from server.model.attention.by_sequence.modules import periods_of
from server.model.attention.by_sequence.sequence_cache import SequenceCache
from server.model.attention.by_sequence.token_states import PagedTokens
from server.model.attention.by_sequence.view import View
from tests.families import make_config

PIECES = (1, 1, 6, 1, 1, 1, 1, 9, 2, 1)  # tokens of each call; periods have two and three
TOKENS = sum(PIECES)


@pytest.mark.parametrize("layer", [1, 2])  # whose periods overlap, and whose do not
def test_compressed_keys_have_the_bits_of_transformers_cache(layer: int) -> None:
    torch.manual_seed(0)
    config = make_config("deepseek_v4")
    model: Any = AutoModelForCausalLM.from_config(config)
    compressor, theirs = model.model.layers[layer].self_attn.compressor, DynamicCache(config=config)
    ours = SequenceCache(lambda _: None, View(), periods_of(model))
    slots, rows = torch.randperm(TOKENS), SimpleNamespace(keys=torch.zeros(1, 1, TOKENS, 96))
    hidden, queries = torch.randn(1, TOKENS, config.hidden_size), torch.randn(1, TOKENS, config.q_lora_rank)
    for first, last in pairwise([0, *accumulate(PIECES)]):
        given = hidden[:, first:last], queries[:, first:last], torch.arange(first, last).unsqueeze(0)
        ours.begin(lambda _: PagedTokens(rows, slots[:last], 0, first), first)  # type: ignore[arg-type]  # noqa: B023
        with torch.inference_mode():
            found, expected = (compressor(*given, cache, layer) for cache in (ours, theirs))
        assert torch.equal(found[0], expected[0])
        assert (found[1] is None and expected[1] is None) or torch.equal(found[1], expected[1])
