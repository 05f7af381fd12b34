"""Attention to parts of the keys, merged, is attention to all of them."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from server.model.attention.attention_plan import Band
from server.model.attention.span_attention import attend_span, attend_span_reference, band_mask, merge

TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}
DEVICES = [
    "cpu",
    pytest.param(
        "cuda:0",
        marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")],
    ),
]


def tensors(heads: int, kv_heads: int, queries: int, keys: int, dim: int) -> tuple[torch.Tensor, ...]:
    """Random query, key and value; keys and values are views into something larger, as in the cache."""
    generator = torch.Generator().manual_seed(heads * 1000 + queries * 100 + keys)
    query = torch.randn((queries, heads, dim), generator=generator).transpose(0, 1)[None]
    key, value = torch.randn((2, 1, kv_heads, keys + 16, dim), generator=generator)[:, :, :, 8 : 8 + keys]
    return query, key, value


def softmax_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float, seen: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """By the definition, in float64."""
    groups = query.shape[1] // key.shape[1]
    key, value = (tensor.double().repeat_interleave(groups, 1) for tensor in (key, value))
    scores = query.double() @ key.mT * scaling
    if seen is not None:
        scores = scores.masked_fill(~seen, -torch.inf)
    return scores.softmax(-1) @ value, scores.logsumexp(-1)


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2), (8, 1)])
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (1, 37), (5, 37), (70, 70)])
@pytest.mark.parametrize("kind", ["all", "causal", "band"])
def test_a_span_is_attended_exactly(
    kind: str, queries: int, keys: int, heads: int, kv_heads: int, dtype: torch.dtype, device: str
) -> None:
    keys = queries if kind == "causal" else keys
    query, key, value = (
        tensor.to(device, dtype) for tensor in tensors(heads, kv_heads, queries, keys, 24 if kind == "band" else 16)
    )
    seen, mask = None, None
    if kind == "causal":
        seen = torch.ones((queries, keys), dtype=torch.bool, device=device).tril()
    if kind == "band":
        mask = band_mask(Band(queries, keys, 0, max(queries, 3)), dtype, torch.device(device))
        seen = mask == 0
    expected, expected_lse = softmax_attention(query, key, value, 0.3, seen)
    for attend in (attend_span, attend_span_reference):
        output, lse = attend(query, key, value, 0.3, is_causal=kind == "causal", mask=mask)
        assert output.dtype == dtype
        assert lse.dtype == torch.float32
        assert float((output - expected).abs().max()) < TOLERANCES[dtype]
        assert float((lse - expected_lse).abs().max()) < TOLERANCES[dtype]


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("split", range(1, 20))
def test_keys_may_be_split_anywhere(split: int, dtype: torch.dtype) -> None:
    query, key, value = (tensor.to(dtype) for tensor in tensors(4, 2, 3, 20, 16))
    whole, whole_lse = attend_span(query, key, value, 0.25)
    parts = [attend_span(query, key[:, :, part], value[:, :, part], 0.25) for part in (slice(split), slice(split, 20))]
    output, lse = merge(*parts[0], *parts[1])
    assert float((output - whole).abs().max()) < TOLERANCES[dtype]
    assert float((lse - whole_lse).abs().max()) < TOLERANCES[dtype]


@pytest.mark.slow
@given(
    st.lists(st.integers(1, 12), min_size=2, max_size=6),
    st.floats(-80, 80),
    st.randoms(use_true_random=False),
)
def test_merging_in_any_order_is_the_whole_even_where_scores_are_large(
    lengths: list[int], size: float, random: Any
) -> None:
    """Scores beyond what exp can take in float32 overflow nothing."""
    query, key, value = tensors(2, 2, 2, sum(lengths), 8)
    key = key * size
    ends = torch.tensor([0, *lengths]).cumsum(0).tolist()
    slices = [slice(a, b) for a, b in pairwise(ends)]
    random.shuffle(slices)
    parts = [attend_span_reference(query, key[:, :, part], value[:, :, part], 1.0) for part in slices]
    output, lse = parts[0]
    for part in parts[1:]:
        output, lse = merge(output, lse, *part)
    expected, expected_lse = softmax_attention(query, key, value, 1.0)
    assert float((output - expected).abs().max()) < 1e-3
    assert torch.allclose(lse.double(), expected_lse, rtol=1e-5, atol=1e-5)


def test_a_soft_cap_bounds_the_scores() -> None:
    query, key, value = tensors(2, 1, 3, 9, 16)
    output, _ = attend_span(query * 10, key, value, 1.0, softcap=2.0)
    scores = 2.0 * torch.tanh(query * 10 @ key.repeat_interleave(2, 1).mT / 2.0)
    assert torch.allclose(output, scores.softmax(-1) @ value.repeat_interleave(2, 1), atol=1e-5)


def test_few_queries_are_attended_in_float32() -> None:
    """Rounding to bfloat16 within would err three times as much."""
    query, key, value = (tensor.to(torch.bfloat16) for tensor in tensors(4, 2, 3, 500, 16))
    expected, _ = softmax_attention(query, key, value, 0.3)
    output, _ = attend_span_reference(query, key, value, 0.3)
    assert torch.equal(output, expected.to(torch.bfloat16))
