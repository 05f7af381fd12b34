"""Residual streams of several rows a token have the results of torch, at every level."""

from __future__ import annotations

from ctypes import addressof

import pytest
import torch

from server.kernels.native.library import Kernels
from server.kernels.native.linear import plain_matrix
from server.kernels.native.structures.experts import Activation, ExpertShape, Gate
from server.kernels.native.structures.layers import (
    BlockAttention,
    FeedForwardKind,
    LayerSpec,
    Mlp,
    Norm,
    NormKind,
    StepCall,
    StreamMix,
)
from server.kernels.native.structures.matrices import Format, Matrix
from server.kernels.native.structures.mixers import MixerKind
from server.model.blocks.linears import no_matrix

TOKENS, STREAMS, HIDDEN = 5, 4, 37
EPSILON, MAGNITUDE = 1e-3, 1.5


class Mix:
    """The mixing of one part, with random weights; ``iterations`` is 0 where rows stay as they are."""

    def __init__(self, iterations: int):
        outputs = STREAMS * (2 + (STREAMS if iterations else 0))
        self.logits, self.bias = torch.randn(outputs, STREAMS * HIDDEN) * 0.1, torch.randn(outputs)
        self.norm = torch.ones(STREAMS * HIDDEN)
        self.spec = StreamMix(
            logits=plain_matrix(self.logits),
            bias=self.bias.data_ptr(),
            norm=self.norm.data_ptr(),
            norm_epsilon=EPSILON,
            epsilon=EPSILON,
            magnitude=MAGNITUDE,
            scales=(1.1, 0.9, 0.7),
            num_streams=STREAMS,
            iterations=iterations,
        )

    def weights(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the weights of sums, of results, and from row to row, float64."""
        flat = rows.flatten(1)
        normed = flat * torch.rsqrt(flat.square().mean(1, keepdim=True) + EPSILON)
        logits, bias = normed @ self.logits.double().T, self.bias.double()
        first, second = slice(STREAMS), slice(STREAMS, 2 * STREAMS)
        sums = torch.sigmoid(logits[:, first] * 1.1 + bias[first]) + EPSILON
        results = MAGNITUDE * torch.sigmoid(logits[:, second] * 0.9 + bias[second])
        if not self.spec.iterations:
            return sums, results, torch.eye(STREAMS, dtype=torch.float64).expand(TOKENS, -1, -1)
        between = (logits[:, 2 * STREAMS :] * 0.7 + bias[2 * STREAMS :]).view(-1, STREAMS, STREAMS)
        between = between.softmax(-1) + EPSILON
        for i in range(self.spec.iterations):
            between = between if i == 0 else between / (between.sum(-1, keepdim=True) + EPSILON)
            between = between / (between.sum(-2, keepdim=True) + EPSILON)
        return sums, results, between


@pytest.mark.parametrize("iterations", [0, 3])
def test_parts_take_sums_of_rows_and_add_to_each(kernels: Kernels, iterations: int) -> None:
    torch.manual_seed(0)
    mixes = Mix(iterations), Mix(iterations)
    rows, result = torch.randn(TOKENS, STREAMS, HIDDEN), torch.randn(TOKENS, HIDDEN)
    streams, hidden, normed = rows.clone(), torch.empty(TOKENS, HIDDEN), torch.empty(TOKENS, HIDDEN)
    own = _Layer(mixes[0].spec, mixes[1].spec)
    layer, weight = own.spec, own.weight
    step = _step(streams, hidden, normed)
    wanted = rows.double()

    kernels.norm_input(layer, step)
    sums, results, between = mixes[0].weights(wanted)
    _check(normed, _normed(torch.einsum("tn,tnh->th", sums, wanted), weight))
    hidden += result
    kernels.begin_layer(layer, step, 0)
    wanted = torch.einsum("tnm,tnh->tmh", between, wanted) + results.unsqueeze(-1) * result.double().unsqueeze(1)
    _check(streams, wanted)
    sums, _, between = mixes[1].weights(wanted)
    _check(normed, _normed(torch.einsum("tn,tnh->th", sums, wanted), weight))
    kernels.finish_layer(layer, step, 0, 0)
    _check(streams, torch.einsum("tnm,tnh->tmh", between, wanted))


def _normed(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return rows * torch.rsqrt(rows.square().mean(1, keepdim=True) + EPSILON) * weight.double()


@pytest.mark.parametrize("starts_block", [False, True])
def test_parts_attend_to_kept_rows_and_add_to_the_last(kernels: Kernels, starts_block: bool) -> None:
    torch.manual_seed(0)
    num_blocks = 2
    queries = torch.randn(2, HIDDEN)
    attentions = [
        BlockAttention(
            queries=queries[part].data_ptr(),
            norm_epsilon=EPSILON,
            scaling=HIDDEN**-0.5,
            num_queries=1,
            num_blocks=num_blocks + (part and starts_block),
            starts_block=not part and starts_block,
        )
        for part in range(2)
    ]
    mixes = [StreamMix(logits=no_matrix(), blocks=addressof(each), num_streams=STREAMS) for each in attentions]
    own = _Layer(*mixes)
    rows, result = torch.randn(TOKENS, STREAMS, HIDDEN), torch.randn(TOKENS, HIDDEN)
    streams, hidden, normed = rows.clone(), torch.empty(TOKENS, HIDDEN), torch.empty(TOKENS, HIDDEN)
    step = _step(streams, hidden, normed)

    def attended(query: torch.Tensor, count: int) -> torch.Tensor:
        seen = torch.cat([streams[:, :count], streams[:, -1:]], 1).double()
        seen = seen * torch.rsqrt(seen.square().mean(-1, keepdim=True) + EPSILON)
        weights = (seen @ query.double() * HIDDEN**-0.5).softmax(1)  # (tokens, rows)
        return _normed(torch.einsum("tn,tnh->th", weights, seen), own.weight)

    kernels.norm_input(own.spec, step)
    _check(normed, attended(queries[0], num_blocks))
    hidden += result
    kernels.begin_layer(own.spec, step, 0)
    wanted = rows.clone()
    if starts_block:
        wanted[:, num_blocks], wanted[:, -1] = rows[:, -1], result
    else:
        wanted[:, -1] += result
    assert torch.equal(streams, wanted)
    _check(normed, attended(queries[1], num_blocks + starts_block))
    kernels.finish_layer(own.spec, step, 0, 0)
    assert torch.equal(streams, wanted)


class _Layer:
    """A layer of an external mixer and of an MLP that adds nothing, whose parts take rows by these mixes."""

    def __init__(self, mixer: StreamMix, inner: StreamMix):
        self.weight, self._nothing = torch.rand(HIDDEN), torch.zeros(HIDDEN, HIDDEN)
        norm, matrix = Norm(self.weight.data_ptr(), None, EPSILON, NormKind.RMS), plain_matrix(self._nothing)
        assert matrix is not None
        shape = ExpertShape((Matrix * 2)(matrix, no_matrix()), matrix, -1, -1, Gate(Activation.SILU), 1, Format.FLOAT32)
        self._mlp = Mlp(shape=shape, weighting=no_matrix(), scale=1.0)
        self.spec = LayerSpec(
            input_norm=norm,
            inner_norm=norm,
            mixer_streams=addressof(mixer),
            inner_streams=addressof(inner),
            mixer_kind=MixerKind.EXTERNAL,
            feed_forward=addressof(self._mlp),
            feed_forward_kind=FeedForwardKind.MLP,
            residual_scale=1.0,
            output_scale=1.0,
        )


def _step(streams: torch.Tensor, hidden: torch.Tensor, normed: torch.Tensor) -> StepCall:
    return StepCall(
        hidden=hidden.data_ptr(),
        streams=streams.data_ptr(),
        normed=normed.data_ptr(),
        tokens=TOKENS,
        hidden_size=HIDDEN,
        is_exact=1,
    )


def _check(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
