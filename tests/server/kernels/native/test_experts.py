"""Native experts equal float64 results, use only their own rows, and are summed per choice."""

from __future__ import annotations

from ctypes import addressof
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from server.kernels.native.library import Kernels
from server.kernels.native.structures.adapters import LoraExperts
from server.kernels.native.structures.experts import Activation, Combination, ExpertBatch, ExpertShape, Gate
from tests.server.kernels.native.matrices import MAKERS, PLAIN, Weights
from tests.server.kernels.native.reference import FLOAT32, apply_gate, gate_error, product_error

ALIGNMENT = 64
NONE = -1  # the expert of an absent choice, and the offset of an absent tensor
ALPHA, LIMIT = 1.702, 2.5
GATED = (Activation.CLAMPED_SWISH, Activation.SOFT_CAPPED, Activation.LIMITED_SILU)  # that need a gate
ADDED = 1e-5  # error of an adapter's addition, which is never rounded, by the sum of its magnitudes
DTYPES = st.sampled_from(list(PLAIN))


class Expert(NamedTuple):
    """The matrices of one expert: gate and up in one or two parts, and down."""

    parts: list[Weights]
    second: Weights
    first_bias: torch.Tensor | None
    second_bias: torch.Tensor | None


class Layer(NamedTuple):
    """Experts, and the rows routed to them."""

    experts: list[Expert]
    gate: Gate
    x: torch.Tensor  # (tokens, inputs)
    chosen: torch.Tensor  # (tokens, k); NONE is no expert
    is_exact: bool


class Slots:
    """Experts in memory, all with the same offsets."""

    def __init__(self, experts: list[Expert], gate: Gate):
        self._memory: list[torch.Tensor] = []
        for expert in experts:
            self._pieces: list[torch.Tensor] = []
            self._end = 0
            first_bias, second_bias = self._put(expert.first_bias), self._put(expert.second_bias)
            parts = [part.described(self._put(part.data), self._put(part.scales)) for part in expert.parts]
            second = expert.second.described(self._put(expert.second.data), self._put(expert.second.scales))
            self._memory.append(torch.cat(self._pieces))
        bias = experts[0].first_bias
        bias_format = 0 if bias is None else PLAIN[bias.dtype]
        first = (type(second) * 2)(*parts)
        self.shape = ExpertShape(first, second, first_bias, second_bias, gate, len(parts), bias_format)

    def address(self, expert: int) -> int:
        return self._memory[expert].data_ptr()

    def _put(self, tensor: torch.Tensor | None) -> int:
        """Append a tensor to a slot, and return its offset."""
        if tensor is None:
            return NONE
        offset, data = self._end, tensor.view(torch.uint8).flatten()
        padding = torch.zeros(-len(data) % ALIGNMENT, dtype=torch.uint8)
        self._pieces += [data, padding]
        self._end += len(data) + len(padding)
        return offset


@st.composite
def layers(draw: st.DrawFn) -> Layer:
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    make, activation = MAKERS[draw(st.sampled_from(list(MAKERS)))], draw(st.sampled_from(Activation))
    has_gate = activation in GATED or draw(st.booleans())
    is_interleaved = has_gate and draw(st.booleans())
    num_parts = 2 if has_gate and not is_interleaved and draw(st.booleans()) else 1
    size, most_inputs, bias_dtype = draw(st.integers(1, 90)), draw(st.integers(1, 150)), draw(DTYPES)
    has_bias, num_experts = draw(st.booleans()), draw(st.integers(1, 4))
    experts = []
    for _ in range(num_experts):
        second = make(random, most_inputs, size)
        width = second.values.shape[1] * (2 if has_gate else 1)
        parts = [make(random, width // num_parts, most_inputs) for _ in range(num_parts)]
        inputs = parts[0].values.shape[1]
        if second.values.shape[0] != inputs:  # MXFP4 has only complete groups
            second = make(random, inputs, size)
        biases = [torch.randn(n, generator=random).to(bias_dtype) if has_bias else None for n in (width, inputs)]
        experts.append(Expert(parts, second, *biases))
    tokens, top_k = draw(st.integers(1, 40)), draw(st.integers(1, 3))
    x = (torch.randn((tokens, inputs), generator=random) / inputs**0.5).to(draw(DTYPES))
    chosen = torch.randint(NONE, num_experts, (tokens, top_k), generator=random)
    gate = Gate(activation, int(has_gate), int(is_interleaved), ALPHA, LIMIT)
    return Layer(experts, gate, x, chosen, draw(st.booleans()))


def run(kernels: Kernels, layer: Layer, first: int = 0, lora: LoraExperts | None = None) -> torch.Tensor:
    """Run experts from `first` on: ``(tokens * k, inputs)``; other choices stay NaN."""
    slots, inputs = Slots(layer.experts, layer.gate), layer.x.shape[1]
    flat = layer.chosen.flatten()
    order = flat.argsort(stable=True)[int((flat == NONE).sum()) :].int()
    starts = torch.searchsorted(flat[order].contiguous(), torch.arange(len(layer.experts) + 1)).int()
    addresses = np.array([slots.address(expert) for expert in range(first, len(layer.experts))], dtype=np.uint64)
    outputs = torch.full((len(flat), inputs), torch.nan)
    batch = ExpertBatch(
        slots=addresses.ctypes.data,
        starts=starts[first:].data_ptr(),
        choices=order.data_ptr(),
        x=layer.x.data_ptr(),
        outputs=outputs.data_ptr(),
        num_experts=len(addresses),
        top_k=layer.chosen.shape[1],
        x_stride=inputs,
        x_format=PLAIN[layer.x.dtype],
        is_exact=int(layer.is_exact),
        lora=None if lora is None else addressof(lora),
    )
    kernels.experts(slots.shape, batch)
    return outputs


def expected(layer: Layer, unmerged: Layer | None = None) -> dict[int, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Return, for each expert with rows, its choices, their results in float64, and the bounds of their errors.

    Args:
        unmerged: the same layer without the adapters that are merged into ``layer``; rows are rounded for its products
            alone.
    """
    top_k, flat, found = layer.chosen.shape[1], layer.chosen.flatten(), {}
    for number, (expert, base) in enumerate(zip(layer.experts, (unmerged or layer).experts, strict=True)):
        choices = (flat == number).nonzero().flatten()
        if not len(choices):
            continue
        x, first, second = layer.x[choices // top_k].double(), joined(expert.parts), expert.second.values
        added = [matrix - own for matrix, own in ((first, joined(base.parts)), (second, base.second.values))]
        rows = x @ first.T + _or_zero(expert.first_bias)
        error = torch.cat([product_error(part, x, is_exact=layer.is_exact) for part in base.parts], 1)
        error = error + ADDED * (x.abs() @ added[0].abs().T) + FLOAT32 * rows.abs()
        hidden, hidden_error = apply_gate(layer.gate, rows), gate_error(layer.gate, rows, error)
        wanted, largest = hidden @ second.T + _or_zero(expert.second_bias), hidden.abs() + hidden_error
        bound = hidden_error @ second.abs().T + product_error(base.second, largest, is_exact=layer.is_exact)
        found[number] = choices, wanted, bound + ADDED * (largest @ added[1].abs().T) + FLOAT32 * wanted.abs()
    return found


def joined(parts: list[Weights]) -> torch.Tensor:
    """Return the outputs of several matrices as one."""
    return torch.cat([part.values for part in parts])


def _or_zero(bias: torch.Tensor | None) -> torch.Tensor:
    return torch.zeros(1, dtype=torch.float64) if bias is None else bias.double()


def cancelling_layer() -> Layer:
    """One expert whose first product sums to nothing, so that its results are the rounding of its row."""
    random = torch.Generator().manual_seed(0)
    first, second = MAKERS["q8"](random, 1, 64), MAKERS["q8"](random, 64, 1)
    row, across = torch.randn((1, 64), generator=random, dtype=torch.float64), first.values
    x = (row - across * (row @ across.T) / across.square().sum()).float()
    gate = Gate(Activation.GELU, 0, 0, ALPHA, LIMIT)
    return Layer([Expert([first], second, None, None)], gate, x, torch.zeros((1, 1), dtype=torch.long), False)


@pytest.mark.slow
@settings(max_examples=40)
@example(layer=cancelling_layer())
@given(layer=layers())
def test_each_choice_runs_its_expert_on_its_token(kernels: Kernels, layer: Layer) -> None:
    found = run(kernels, layer).double()
    assert bool(found[layer.chosen.flatten() == NONE].isnan().all())
    for choices, wanted, bound in expected(layer).values():
        assert bool(((found[choices] - wanted).abs() <= bound).all())


@settings(max_examples=15)
@given(layer=layers(), data=st.data())
def test_a_choice_has_the_same_bits_whatever_experts_share_the_call(
    kernels: Kernels, layer: Layer, data: st.DataObject
) -> None:
    first = data.draw(st.integers(0, len(layer.experts) - 1))
    together, later = run(kernels, layer), run(kernels, layer, first)
    is_run = layer.chosen.flatten() >= first
    assert torch.equal(later[is_run], together[is_run])
    assert bool(later[~is_run].isnan().all())


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in MAKERS if name.endswith("transposed")])
def test_few_rows_of_wide_experts_stored_inputs_first_have_the_bits_of_many(kernels: Kernels, name: str) -> None:
    random = torch.Generator().manual_seed(0)
    # Several tiles, or one of more outputs than fit in registers; incomplete columns, and an incomplete pair of inputs.
    parts, second = [MAKERS[name](random, 4202, 601)], MAKERS[name](random, 601, 2101)
    expert = Expert(parts, second, torch.randn(4202, generator=random), torch.randn(601, generator=random))
    x = torch.randn((9, 601), generator=random)
    many = Layer([expert], Gate(Activation.SILU, 1, 0, ALPHA, LIMIT), x, torch.zeros((9, 1), dtype=torch.long), False)
    together = run(kernels, many)
    assert bool(together.isfinite().all())
    for rows in range(1, 6):
        assert torch.equal(run(kernels, many._replace(x=x[:rows], chosen=many.chosen[:rows])), together[:rows])


@settings(max_examples=20)
@given(tokens=st.integers(1, 40), top_k=st.integers(1, 8), hidden=st.integers(1, 150), dtypes=st.tuples(DTYPES, DTYPES))
def test_choices_are_weighted_and_added(
    kernels: Kernels, tokens: int, top_k: int, hidden: int, dtypes: tuple[torch.dtype, torch.dtype]
) -> None:
    random = torch.Generator().manual_seed(tokens)
    outputs = torch.randn((tokens, top_k, hidden), generator=random)
    weights = torch.rand((tokens, top_k), generator=random).to(dtypes[0])
    absent = (torch.rand(tokens * top_k, generator=random) < 0.2).nonzero().flatten().int()
    y = torch.empty((tokens, hidden), dtype=dtypes[1])
    left = outputs.clone()
    left.view(-1, hidden)[absent.long()] = torch.nan
    kernels.combine(
        Combination(
            outputs=left.data_ptr(),
            weights=weights.data_ptr(),
            absent=absent.data_ptr(),
            y=y.data_ptr(),
            tokens=tokens,
            top_k=top_k,
            hidden=hidden,
            y_stride=hidden,
            num_absent=len(absent),
            weights_format=PLAIN[dtypes[0]],
            y_format=PLAIN[dtypes[1]],
        )
    )
    outputs.view(-1, hidden)[absent.long()] = 0
    torch.testing.assert_close(y, (outputs * weights.unsqueeze(-1).float()).sum(1).to(dtypes[1]))
