"""Additions of adapters to native experts equal those of merged weights, and change no other row."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from server.kernels.native.library import Kernels
from server.kernels.native.lora import PartsTable, addresses
from server.kernels.native.structures.adapters import LoraExperts
from tests.server.kernels.native.matrices import PLAIN
from tests.server.kernels.native.test_experts import Expert, Layer, expected, layers, run

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Part:
    """A low-rank addition."""

    down: torch.Tensor
    up: torch.Tensor
    scale: float
    first_output: int

    def added_to(self, values: torch.Tensor, factor: float) -> torch.Tensor:
        """Return a matrix ``(outputs, inputs)`` with the addition merged into it."""
        merged = values.clone()
        outputs = slice(self.first_output, self.first_output + len(self.up))
        merged[outputs] += factor * self.scale * (self.up.double() @ self.down.double())
        return merged


@dataclass(frozen=True)
class Adapters:
    """Adapters of a layer of experts, with at most one part for each matrix of an expert."""

    first: list[list[list[Part]]]  # by adapter and expert
    second: list[list[list[Part]]]
    factors: torch.Tensor  # (tokens, adapters)

    def call(self, rows: slice = slice(None)) -> tuple[LoraExperts, list[object]]:
        """Return the call's structure, and what it refers to."""
        factors = self.factors[rows].contiguous()
        tables = [
            [PartsTable.of([[(part, 0) for part in parts] for parts in adapter]) for adapter in adapters]
            for adapters in (self.first, self.second)
        ]
        first, second = (addresses(each) for each in tables)
        numbers = np.arange(len(self.first[0]), dtype=np.int32)
        call = LoraExperts(
            first.ctypes.data, second.ctypes.data, factors.data_ptr(), factors.shape[1], numbers.ctypes.data, None
        )
        return call, [factors, tables, first, second, numbers]


def part(draw: st.DrawFn, random: torch.Generator, outputs: int, inputs: int) -> list[Part]:
    if draw(st.integers(0, 3)) == 0:
        return []
    rank, first = draw(st.integers(1, 40)), draw(st.integers(0, outputs - 1))
    count, dtype = draw(st.integers(1, outputs - first)), draw(st.sampled_from(list(PLAIN)))
    down = (torch.randn((rank, inputs), generator=random) * inputs**-0.5).to(dtype)
    up = (torch.randn((count, rank), generator=random) * rank**-0.5).to(dtype)
    up = up.mT.contiguous().mT if draw(st.booleans()) else up
    return [Part(down, up, draw(st.sampled_from([0.5, 1.0, 2.0])), first)]


@st.composite
def adapted_layers(draw: st.DrawFn) -> tuple[Layer, Adapters]:
    layer = draw(layers())
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    width, inputs = sum(len(each.values) for each in layer.experts[0].parts), layer.x.shape[1]
    inner = layer.experts[0].second.values.shape[1]
    count = draw(st.integers(1, 3))
    first, second = (
        [[part(draw, random, *sizes) for _ in layer.experts] for _ in range(count)]
        for sizes in ((width, inputs), (inputs, inner))
    )
    factors = torch.randint(-1, 2, (len(layer.x), count), generator=random).float()
    return layer, Adapters(first, second, factors)


def merged(layer: Layer, adapters: Adapters, token: int) -> Layer:
    """Return a layer of one token whose experts have its adapters merged into them."""
    experts = []
    for number, expert in enumerate(layer.experts):
        first, second = torch.cat([each.values for each in expert.parts]), expert.second.values
        for place, factor in enumerate(adapters.factors[token].tolist()):
            for added in adapters.first[place][number]:
                first = added.added_to(first, factor)
            for added in adapters.second[place][number]:
                second = added.added_to(second, factor)
        experts.append(
            Expert(
                [replace(expert.parts[0], values=first)],
                replace(expert.second, values=second),
                expert.first_bias,
                expert.second_bias,
            )
        )
    return layer._replace(experts=experts, x=layer.x[token : token + 1], chosen=layer.chosen[token : token + 1])


@settings(max_examples=40)
@given(adapted=adapted_layers())
def test_adapters_give_what_merged_weights_give(kernels: Kernels, adapted: tuple[Layer, Adapters]) -> None:
    layer, adapters = adapted
    call, _keeps = adapters.call()
    found, top_k = run(kernels, layer, lora=call).double(), layer.chosen.shape[1]
    for token in range(len(layer.x)):
        for choices, wanted, bound in expected(merged(layer, adapters, token), layer).values():
            assert bool(((found[token * top_k + choices] - wanted).abs() <= bound).all())


@settings(max_examples=20)
@given(adapted=adapted_layers(), data=st.data())
def test_adapters_of_other_tokens_change_no_bit(
    kernels: Kernels, adapted: tuple[Layer, Adapters], data: st.DataObject
) -> None:
    layer, adapters = adapted
    token, top_k = data.draw(st.integers(0, len(layer.x) - 1)), layer.chosen.shape[1]
    rows = slice(token, token + 1)
    (call, _keeps), (call_alone, _keeps_alone) = adapters.call(), adapters.call(rows)
    together = run(kernels, layer, lora=call)[token * top_k : (token + 1) * top_k]
    alone = run(kernels, layer._replace(x=layer.x[rows].contiguous(), chosen=layer.chosen[rows]), lora=call_alone)
    torch.testing.assert_close(together, alone, rtol=0, atol=0, equal_nan=True)
