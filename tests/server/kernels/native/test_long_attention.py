"""Attention to thousands of keys in bfloat16 has the results of float64, but for rounded weights, at every level."""

from __future__ import annotations

from copy import copy
from ctypes import Structure, addressof, c_void_p

import pytest
import torch

from server.kernels.native.library import Kernels, impossible
from server.kernels.native.linear import plain_matrix
from server.kernels.native.structures.layers import (
    FeedForwardKind,
    LayerSpec,
    NormKind,
    StepCall,
    StepSequence,
)
from server.kernels.native.structures.layers import Norm as NormSpec
from server.kernels.native.structures.matrices import Format, Matrix
from server.kernels.native.structures.mixers import (
    CompressedAttention,
    Compressor,
    GroupedAttention,
    LatentAttention,
    MixerKind,
    RelativeBiases,
)
from server.model.blocks.linears import no_matrix

HEADS, KV_HEADS, DIM, ROPE = 4, 2, 64, 32
HIDDEN = HEADS * DIM
BLOCK, PART = 16, 512  # tokens: of the cache, and of sums of their own
KEYS = 6001  # several parts and a piece of one
SCALING = 0.125
EXACT = 2e-6  # of the largest result: sums in float32
ROUNDED = 4e-4  # a weight in bfloat16 is off by 2 ** -9 at most, and thousands of them even out
ROUNDING = ("avx512_bf16", "amx")  # levels that round weights of keys in bfloat16


def matrix_of(weight: torch.Tensor) -> Matrix:
    matrix = plain_matrix(weight)
    assert matrix is not None
    return matrix


def selection(outputs: int, inputs: int = HIDDEN) -> torch.Tensor:
    """Return a matrix whose output ``i`` is input ``i % inputs``, so that products round nothing."""
    return torch.eye(inputs)[torch.arange(outputs) % inputs]


def ramp(*shape: int) -> torch.Tensor:
    """Return random numbers about a mean that grows along the keys, the second to last dimension, in bfloat16.

    A part of the keys that is left out or taken twice changes their mean.
    """
    mean = torch.linspace(-1, 3, shape[-2]).unsqueeze(1)
    return (torch.randn(shape) * 0.5 + mean).bfloat16()


def in_blocks(rows: torch.Tensor) -> torch.Tensor:
    """Return keys as the cache has them: ``(..., slots, dim)`` to ``(..., blocks, dim, 16)``."""
    return rows.unflatten(-2, (-1, BLOCK)).transpose(-1, -2).contiguous()


def rows_of(blocks: torch.Tensor) -> torch.Tensor:
    return blocks.transpose(-1, -2).flatten(-3, -2)


class Step:
    """A step of the last tokens of one sequence, whose blocks lie in any order."""

    def __init__(self, num_tokens: int):
        self.num_tokens, self.num_blocks = num_tokens, -(-KEYS // BLOCK)
        self.order = torch.randperm(self.num_blocks)  # the place of each block
        self.rows = torch.randn(num_tokens, HIDDEN).bfloat16().float()
        self._table = self.order.to(torch.int32)
        self._tables = (c_void_p * 1)(self._table.data_ptr())
        self._sequence = StepSequence(num_tokens=num_tokens, first_position=KEYS - num_tokens)

    def placed(self, cache: torch.Tensor, dim: int = 0) -> torch.Tensor:
        """Return blocks in their places."""
        return torch.empty_like(cache).index_copy_(dim, self.order, cache)

    def last_token(self) -> Step:
        """Return a step of the last token, with the same blocks."""
        last = copy(self)
        last.num_tokens, last.rows = 1, self.rows[-1:]
        last._sequence = StepSequence(num_tokens=1, first_position=KEYS - 1)
        return last

    def run(self, kernels: Kernels, kind: MixerKind, spec: Structure) -> torch.Tensor:
        """Return what the mixer adds to the rows, ``(tokens, hidden)``."""
        hidden, normed = self.rows.clone(), torch.empty_like(self.rows)
        layer = LayerSpec(
            input_norm=NormSpec(kind=NormKind.NONE),
            mixer=addressof(spec),
            mixer_kind=kind,
            feed_forward_kind=FeedForwardKind.NONE,
            residual_scale=1.0,
            output_scale=1.0,
        )
        assert impossible("greenroom_check_layer", layer, HIDDEN, 0) is None
        call = StepCall(
            hidden=hidden.data_ptr(),
            normed=normed.data_ptr(),
            sequences=addressof(self._sequence),
            block_tables=addressof(self._tables),
            tokens=self.num_tokens,
            num_sequences=1,
            hidden_size=HIDDEN,
        )
        kernels.begin_layer(layer, call, 0)
        return hidden - self.rows

    def attended(
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        window: int = KEYS,
        biases: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the attention of float64, ``(tokens, heads * dim)``.

        Args:
            queries: ``(heads, tokens, dim)``.
            keys: of each head, ``(heads, keys, dim)``, in the order of positions.
            values: the same.
            biases: of scores by distance, ``(heads, tokens, distances)``.
        """
        scores = queries.double() @ keys.double().transpose(1, 2) * SCALING
        positions = torch.arange(KEYS - self.num_tokens, KEYS)[:, None]
        places = torch.arange(keys.shape[1])
        if biases is not None:
            distances, extent = positions - places, biases.shape[-1]
            by_key = biases.double().gather(-1, distances.clamp(0, extent - 1).expand(HEADS, -1, -1))
            scores = scores + by_key * ((distances >= 0) & (distances < extent))
        scores = scores.masked_fill((places > positions) | (places <= positions - window), -torch.inf)
        return (scores.softmax(-1) @ values.double()).transpose(0, 1).flatten(1)


def error_of(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


def grouped_attention(
    step: Step, keys: torch.Tensor, values: torch.Tensor, matrices: tuple[torch.Tensor, ...], window: int = 0
) -> GroupedAttention:
    """Return attention of ``HEADS`` heads to caches ``(KV_HEADS, blocks, key_dim, 16)`` and ``(.., 16, value_dim)``."""
    query, key, value, output = map(matrix_of, matrices)
    return GroupedAttention(
        query=query,
        key=key,
        value=value,
        output=output,
        gate=no_matrix(),
        key_cache=keys.data_ptr(),
        value_cache=values.data_ptr(),
        cache_slots=step.num_blocks * BLOCK,
        cache_dim=keys.shape[2],
        heads=HEADS,
        kv_heads=KV_HEADS,
        key_dim=len(matrices[1]) // KV_HEADS,
        value_dim=len(matrices[2]) // KV_HEADS,
        window=window,
        cache_format=Format.BFLOAT16,
        value_scale=1.0,
        scaling=SCALING,
    )


def of_all_heads(rows: torch.Tensor) -> torch.Tensor:
    """Return the keys or values ``(KV_HEADS, keys, dim)`` that each head attends to."""
    return rows.repeat_interleave(HEADS // KV_HEADS, 0)


@pytest.mark.parametrize("num_tokens", [1, 19])
def test_grouped_attention_to_thousands_of_keys(kernels: Kernels, level: str, num_tokens: int) -> None:
    torch.manual_seed(0)
    step = Step(num_tokens)
    shape = KV_HEADS, step.num_blocks * BLOCK, DIM
    keys = step.placed(in_blocks(torch.randn(shape).bfloat16()), 1)
    values = step.placed(ramp(*shape).unflatten(1, (-1, BLOCK)), 1)
    both, few = selection(HIDDEN), selection(KV_HEADS * DIM)
    spec = grouped_attention(step, keys, values, (both, few, few, both))
    found = step.run(kernels, MixerKind.GROUPED_ATTENTION, spec)
    queries = step.rows.view(num_tokens, HEADS, DIM).transpose(0, 1)
    seen = [each[:, step.order] for each in (keys, values)]  # with those of the step
    wanted = step.attended(queries, of_all_heads(rows_of(seen[0])), of_all_heads(seen[1].flatten(1, 2)))
    assert error_of(found, wanted) < (ROUNDED if level in ROUNDING else EXACT)


@pytest.mark.parametrize("num_tokens", [1, 19])
def test_grouped_attention_reads_no_key_outside_of_a_window(kernels: Kernels, level: str, num_tokens: int) -> None:
    """Heads are not made of whole vectors, the window ends within a pair of keys, and all before it is NaN."""
    torch.manual_seed(0)
    step, window, key_dim, value_dim = Step(num_tokens), 700, 71, 40
    before = KEYS - num_tokens - window + 1
    shape = KV_HEADS, step.num_blocks * BLOCK
    rows = torch.randn(*shape, key_dim + 1).bfloat16()
    wide = torch.cat([ramp(*shape, value_dim), torch.zeros(*shape, key_dim + 1 - value_dim).bfloat16()], 2)
    for each in (rows, wide):
        each[:, :before] = torch.nan
        each[:, KEYS:] = torch.nan
    keys, values = step.placed(in_blocks(rows), 1), step.placed(wide.unflatten(1, (-1, BLOCK)), 1)
    query, output = selection(HEADS * key_dim), selection(HIDDEN, HEADS * value_dim)
    matrices = query, selection(KV_HEADS * key_dim), selection(KV_HEADS * value_dim), output
    spec = grouped_attention(step, keys, values, matrices, window)
    found = step.run(kernels, MixerKind.GROUPED_ATTENTION, spec)[:, : HEADS * value_dim]
    queries = (step.rows @ query.T).view(num_tokens, HEADS, key_dim).transpose(0, 1)
    seen = [each[:, step.order] for each in (keys, values)]
    of_heads = [of_all_heads(rows_of(seen[0])[..., :key_dim]), of_all_heads(seen[1].flatten(1, 2)[..., :value_dim])]
    wanted = step.attended(queries, *(each.nan_to_num() for each in of_heads), window)
    assert error_of(found, wanted) < (ROUNDED if level in ROUNDING else EXACT)


@pytest.mark.parametrize("num_tokens", [1, 19])
def test_scores_of_far_keys_have_no_relative_biases(kernels: Kernels, level: str, num_tokens: int) -> None:
    """The last distance with a bias lies within a block of keys."""
    torch.manual_seed(0)
    step, num_profiles, extent = Step(num_tokens), 3, 1001
    shape = KV_HEADS, step.num_blocks * BLOCK, DIM
    keys = step.placed(in_blocks(torch.randn(shape).bfloat16()), 1)
    values = step.placed(ramp(*shape).unflatten(1, (-1, BLOCK)), 1)
    both, few, weights = selection(HIDDEN), selection(KV_HEADS * DIM), selection(HEADS * num_profiles)
    profiles = torch.randn(num_profiles, extent) * 0.5
    padded = torch.nn.functional.pad(profiles.flip(1), (BLOCK, BLOCK))
    relative = RelativeBiases(matrix_of(weights), padded.data_ptr(), num_profiles, extent)
    spec = grouped_attention(step, keys, values, (both, few, few, both))
    spec.relative = addressof(relative)
    found = step.run(kernels, MixerKind.GROUPED_ATTENTION, spec)
    queries = step.rows.view(num_tokens, HEADS, DIM).transpose(0, 1)
    biases = (step.rows @ weights.T).view(num_tokens, HEADS, num_profiles).transpose(0, 1) @ profiles
    seen = [each[:, step.order] for each in (keys, values)]
    wanted = step.attended(queries, of_all_heads(rows_of(seen[0])), of_all_heads(seen[1].flatten(1, 2)), biases=biases)
    assert error_of(found, wanted) < (ROUNDED if level in ROUNDING else 2 * EXACT)


def test_grouped_attention_of_a_token_has_the_same_bits_alone(kernels: Kernels) -> None:
    """The keys of the last rows begin at different places within the window."""
    torch.manual_seed(0)
    step = Step(19)
    shape = KV_HEADS, step.num_blocks * BLOCK, DIM
    keys = step.placed(in_blocks(torch.randn(shape).bfloat16()), 1)
    values = step.placed(ramp(*shape).unflatten(1, (-1, BLOCK)), 1)
    both, few = selection(HIDDEN), selection(KV_HEADS * DIM)
    spec = grouped_attention(step, keys, values, (both, few, few, both), window=701)
    together = step.run(kernels, MixerKind.GROUPED_ATTENTION, spec)
    alone = step.last_token().run(kernels, MixerKind.GROUPED_ATTENTION, spec)
    assert torch.equal(together[-1:], alone)


@pytest.mark.parametrize("num_tokens", [1, 19])
def test_latent_attention_to_thousands_of_keys(kernels: Kernels, level: str, num_tokens: int) -> None:
    """Each head's expansion of a latent is the latent itself."""
    torch.manual_seed(0)
    step = Step(num_tokens)
    width = DIM + ROPE
    latents = torch.cat([ramp(step.num_blocks * BLOCK, DIM), torch.randn(step.num_blocks * BLOCK, ROPE).bfloat16()], 1)
    cache = step.placed(in_blocks(latents))
    query, latent, expansion = selection(HEADS * width), selection(width), torch.eye(DIM).repeat(HEADS, 1)
    both, norm = selection(HIDDEN), torch.ones(DIM)
    spec = LatentAttention(
        query_down=no_matrix(),
        query=matrix_of(query),
        latent=matrix_of(latent),
        to_keys=matrix_of(expansion),
        to_values=matrix_of(expansion),
        output=matrix_of(both),
        gate=no_matrix(),
        latent_norm=norm.data_ptr(),
        latent_norm_epsilon=1e-6,
        cache=cache.data_ptr(),
        cache_slots=step.num_blocks * BLOCK,
        cache_dim=width,
        heads=HEADS,
        rank=DIM,
        nope_dim=DIM,
        rope_dim=ROPE,
        value_dim=DIM,
        cache_format=Format.BFLOAT16,
        scaling=SCALING,
    )
    found = step.run(kernels, MixerKind.LATENT_ATTENTION, spec)
    queries = (step.rows @ query.T).view(num_tokens, HEADS, width).transpose(0, 1)
    keys = rows_of(cache[step.order]).expand(HEADS, -1, -1)  # with those of the step
    bound = ROUNDED if level in ROUNDING else EXACT
    assert error_of(found, step.attended(queries, keys, keys[..., :DIM])) < bound


@pytest.mark.parametrize("num_tokens", [1, 19])
def test_attention_to_thousands_of_compressed_keys(kernels: Kernels, level: str, num_tokens: int) -> None:
    """Keys are values, those of the window and compressed ones alike, and their projections are selections."""
    torch.manual_seed(0)
    step, period, window = Step(num_tokens), 2, 100
    rows = torch.cat([ramp(step.num_blocks * BLOCK, DIM) * 0.5 for _ in range(3)], 1)  # also compressed keys and gates
    cache = step.placed(torch.cat([in_blocks(rows[:, :DIM]).flatten(1), rows[:, DIM:].reshape(-1, 2 * DIM * BLOCK)], 1))
    every, few, group = selection(HIDDEN), selection(DIM), selection(HIDDEN, HIDDEN // 2)
    ones, zeros = torch.ones(HIDDEN), torch.zeros(period, DIM)
    matrix, key = matrix_of(every), matrix_of(few)
    spec = CompressedAttention(
        query_down=matrix,
        query=matrix,
        key=key,
        groups=matrix_of(group),
        output=matrix,
        keys=Compressor(key, key, zeros.data_ptr(), ones.data_ptr(), DIM, 1e-6),
        index=Compressor(key=no_matrix(), gate=no_matrix()),
        index_query=no_matrix(),
        index_weights=no_matrix(),
        query_norm=ones.data_ptr(),
        head_norm=ones.data_ptr(),
        key_norm=ones.data_ptr(),
        cache=cache.data_ptr(),
        cache_slots=step.num_blocks * BLOCK,
        cache_dim=3 * DIM,
        heads=HEADS,
        dim=DIM,
        num_groups=2,
        window=window,
        period=period,
        cache_format=Format.BFLOAT16,
        scaling=SCALING,
    )
    found = step.run(kernels, MixerKind.COMPRESSED_ATTENTION, spec)
    queries = step.rows.view(num_tokens, HEADS, DIM)
    queries = queries * torch.rsqrt(queries.square().mean(-1, keepdim=True))
    queries = queries.bfloat16().float() if level in ROUNDING else queries
    cached = cache[step.order]  # with those of the step
    own = rows_of(cached[:, : DIM * BLOCK].unflatten(1, (DIM, BLOCK)))
    compressed_keys = cached[:, DIM * BLOCK :].reshape(-1, 2, DIM)[:, 0]
    for token, position in enumerate(range(KEYS - num_tokens, KEYS)):
        compressed = compressed_keys[period - 1 : position + 1 : period]
        keys = torch.cat([compressed, own[position + 1 - window : position + 1]]).double()
        wanted = (queries[token].double() @ keys.T * SCALING).softmax(-1) @ keys
        assert error_of(found[token], wanted.flatten()) < (ROUNDED if level in ROUNDING else 4 * EXACT)


@pytest.mark.parametrize("wrong", ["sums in bfloat16", "the last block left out", "a part taken twice"])
def test_the_larger_bound_shows_wrong_sums(wrong: str) -> None:
    torch.manual_seed(0)
    weights = (torch.randn(KEYS) * 0.5).softmax(0).double()
    values = ramp(KEYS, DIM).double()
    wanted = weights @ values
    parts = [weights[first : first + PART] @ values[first : first + PART] for first in range(0, KEYS, PART)]
    if wrong == "sums in bfloat16":
        found = torch.zeros(DIM).bfloat16()
        for part in parts:
            found = found + part.bfloat16()
    elif wrong == "the last block left out":
        found = weights[:-BLOCK] @ values[:-BLOCK] / weights[:-BLOCK].sum()
    else:
        again = weights[:PART]
        found = (wanted + parts[0]) / (1 + again.sum())
    assert error_of(found.double(), wanted) > 2 * ROUNDED
