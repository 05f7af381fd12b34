"""Invariant attention equals the reference, and a token's bits do not depend on its sequence's chunks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from server.kernels.batch_invariant import batch_invariant
from server.model.attention.invariant_attention import attend_invariant
from server.model.attention.window import oldest_seen
from server.model.hooks import AttentionOptions
from server.model.transformers_hooks.probe import attend_sequence

LENGTHS = (1, 7, 256, 300, 520)
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 0.05}


def draw(heads: int, tokens: int, width: int, seed: int) -> torch.Tensor:
    """Return random ``(heads, tokens, width)``, with the strides of the KV cache."""
    values = torch.randn((tokens, heads, width), generator=torch.Generator().manual_seed(seed))
    return values.transpose(0, 1)


@st.composite
def problems(draw_value: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, AttentionOptions]:
    kv_heads, groups = draw_value(st.sampled_from([(1, 1), (2, 1), (1, 4), (2, 2)]))
    length = draw_value(st.sampled_from(LENGTHS))
    key_dim, value_dim = draw_value(st.sampled_from([(8, 8), (12, 20), (64, 32)]))
    options = AttentionOptions(
        scaling=draw_value(st.sampled_from([key_dim**-0.5, 0.1])),
        sliding_window=draw_value(st.sampled_from([None, 1, 6, 200])),
        is_chunked=draw_value(st.booleans()),
        sinks=draw_value(st.sampled_from([None, torch.linspace(-1, 1, kv_heads * groups)])),
        softcap=draw_value(st.sampled_from([None, 5.0])),
    )
    seed = draw_value(st.integers(0, 1000))
    query = draw(kv_heads * groups, length, key_dim, seed)
    return query, draw(kv_heads, length, key_dim, seed + 1), draw(kv_heads, length, value_dim, seed + 2), options


@pytest.mark.slow
@pytest.mark.parametrize("dtype", list(TOLERANCES), ids=str)
@settings(max_examples=40)
@given(problem=problems())
def test_it_equals_the_reference(
    dtype: torch.dtype, problem: tuple[torch.Tensor, torch.Tensor, torch.Tensor, AttentionOptions]
) -> None:
    query, key, value = (tensor.to(dtype) for tensor in problem[:3])
    wanted = attend_sequence(query.float(), key.float(), value.float(), problem[3]).transpose(0, 1)
    found = attend_invariant(query, key, value, 0, options=problem[3])
    assert found.dtype == dtype
    assert float((found.float() - wanted).abs().max()) < TOLERANCES[dtype]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", list(TOLERANCES), ids=str)
@settings(max_examples=40)
@given(problem=problems(), pieces=st.lists(st.sampled_from([1, 2, 5, 16, 31, 120, 256]), min_size=1, max_size=8))
def test_chunks_and_decodes_have_the_bits_of_one_pass(
    dtype: torch.dtype,
    problem: tuple[torch.Tensor, torch.Tensor, torch.Tensor, AttentionOptions],
    pieces: list[int],
) -> None:
    """Keys that no later token sees are not passed, as the cache may have dropped them."""
    query, key, value = (tensor.to(dtype) for tensor in problem[:3])
    options, length, start = problem[3], query.shape[1], 0
    with batch_invariant():
        whole = attend_invariant(query, key, value, 0, options=options)
        for piece in [*pieces, length]:
            end = min(length, start + piece)
            window = options.sliding_window
            first = max(0, oldest_seen(start, window, options.is_chunked)) if window else 0
            found = attend_invariant(
                query[:, start:end], key[:, first:end], value[:, first:end], first, options=options
            )
            assert torch.equal(found, whole[:, start:end])
            if (start := end) == length:
                break


def test_layout_in_memory_changes_no_bit() -> None:
    query, key, value = draw(4, 300, 16, 0), draw(2, 300, 16, 1), draw(2, 300, 16, 2)
    options = AttentionOptions(0.25)
    found = attend_invariant(query, key, value, 0, options=options)
    assert torch.equal(found, attend_invariant(*(t.contiguous() for t in (query, key, value)), 0, options=options))
