"""Triton's kernels give what torch gives on the CPU for the same bytes."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from server.kernels.backend import SortedRows
from server.kernels.compute_pool import ComputePool
from server.kernels.native.backend import describe_experts
from server.kernels.torch_backend import TorchBackend
from server.kernels.triton import available
from server.kernels.triton import backend as triton_backend
from server.kernels.triton import experts as kernels
from server.kernels.triton.available import has_driver
from server.kernels.triton.backend import TritonBackend
from server.kernels.triton.launch import Tiles, unsupported
from tests.server.kernels.triton.layers import KINDS, Layer, make_layer, make_rows

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning"),  # of a sigmoid near 0
]

DEVICE = torch.device("cuda" if has_driver() else "cpu")
EXPERTS, TOP_K = 5, 2
TILES = Tiles(32, 64, many_rows=16, first_outputs=32, second_outputs=32, many_inputs=64)
WIDE = Tiles(256, 256, many_rows=32, first_outputs=256, second_outputs=256, many_inputs=256)  # fewer to interpret
FEW, MANY = 3, 40  # tokens
TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3}  # by the largest result


def make_backend(layer: Layer) -> TritonBackend:
    shape = describe_experts(layer.module, layer.layout)
    assert not isinstance(shape, str), shape
    assert unsupported(shape) is None
    fallback = TorchBackend(ComputePool(1), layer.module, layer.layout)
    tiles = TILES if layer.hidden < WIDE.few_inputs or DEVICE.type == "cuda" else WIDE
    return TritonBackend(shape, EXPERTS, fallback, scales_input=layer.module.scales_input, tiles=tiles)


def run(layer: Layer, rows: SortedRows, *groups: Sequence[int], gives_back: bool = False) -> torch.Tensor:
    """Run a layer whose experts come in groups; all at once if there are none."""
    there = SortedRows(rows.hidden_states.to(DEVICE), rows.weights.to(DEVICE), rows.order, rows.spans)
    batches = layer.to(DEVICE).batches(*(groups or [list(rows.spans)]), gives_back=gives_back)
    return make_backend(layer).run(there, batches, lambda: None).cpu()


def expected(layer: Layer, rows: SortedRows) -> torch.Tensor:
    wide = SortedRows(rows.hidden_states.float(), rows.weights.float(), rows.order, rows.spans)
    backend = TorchBackend(ComputePool(1), layer.module, layer.layout)
    return backend.run(wide, layer.batches(list(rows.spans)), lambda: None)


@pytest.mark.parametrize("num_tokens", [FEW, MANY])
@pytest.mark.parametrize("name", KINDS)
def test_experts_have_the_results_of_torch(name: str, num_tokens: int) -> None:
    layer = make_layer(KINDS[name], EXPERTS)
    rows = make_rows(layer, num_tokens, TOP_K)
    wanted = expected(layer, rows)
    assert float((run(layer, rows) - wanted).abs().max()) <= TOLERANCE[torch.float32] * float(wanted.abs().max())


@pytest.mark.parametrize("num_tokens", [FEW, MANY])
def test_rows_of_half_precision_are_rounded_once_in_between(num_tokens: int) -> None:
    layer = make_layer(KINDS["block_int8"], EXPERTS)
    rows = make_rows(layer, num_tokens, TOP_K, torch.float16)
    wanted, found = expected(layer, rows), run(layer, rows)
    assert found.dtype == torch.float16
    assert float((found.float() - wanted).abs().max()) <= TOLERANCE[torch.float16] * float(wanted.abs().max())


@pytest.mark.parametrize("num_tokens", [FEW, MANY])
@pytest.mark.parametrize("gives_back", [False, True])
def test_the_order_in_which_experts_come_changes_no_bit(num_tokens: int, *, gives_back: bool) -> None:
    layer = make_layer(KINDS["float32"], EXPERTS)
    rows = make_rows(layer, num_tokens, TOP_K)
    at_once, keys = run(layer, rows), list(rows.spans)
    assert torch.equal(run(layer, rows, keys[1:2], keys[:1], keys[2:], gives_back=gives_back), at_once)


@pytest.mark.parametrize("num_tokens", [FEW, MANY])
def test_the_choices_of_a_router_give_the_same_bits_if_all_experts_are_there(num_tokens: int) -> None:
    layer = make_layer(KINDS["block_int8"], EXPERTS)
    rows = make_rows(layer, num_tokens, TOP_K)
    chosen = torch.full((num_tokens * TOP_K,), EXPERTS + 1)  # no expert
    for expert, (start, end) in rows.spans.items():
        chosen[torch.from_numpy(rows.order[start:end])] = expert
    slots = torch.tensor([layer.slots[expert] for expert in range(EXPERTS)], dtype=torch.int32)
    given = [rows.hidden_states, chosen.view(num_tokens, TOP_K), rows.weights, slots, layer.arena]
    found = make_backend(layer).run_by_table(*(each.to(DEVICE) for each in given)).cpu()
    assert torch.equal(found, run(layer, rows))


def test_company_changes_no_bit_of_few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = make_layer(KINDS["block_int4"], EXPERTS)
    rows = make_rows(layer, 8, TOP_K)
    monkeypatch.setattr(triton_backend, "FEW_ROWS", 100)
    together, kept = run(layer, rows), rows.order[: rows.num_run] // TOP_K == 0
    spans, start = {}, 0
    for expert, (first, last) in rows.spans.items():
        if count := int(kept[first:last].sum()):
            spans[expert] = (start, start + count)
            start += count
    own = rows.order[rows.order // TOP_K == 0]
    alone = SortedRows(rows.hidden_states[:1], rows.weights[:1], own, spans)
    assert torch.equal(run(layer, alone)[0], together[0])


def test_rows_of_no_expert_are_zero() -> None:
    layer = make_layer(KINDS["float32"], EXPERTS)
    rows = make_rows(layer, 2, TOP_K)
    assert not run(layer, SortedRows(rows.hidden_states, rows.weights, rows.order, {})).any()


@pytest.mark.parametrize("num_tokens", [FEW, MANY])
def test_slots_behind_32_bits_of_bytes_are_read(num_tokens: int) -> None:
    layer = make_layer(KINDS["float32"], 2)
    far = make_layer(KINDS["float32"], 2, first_slot=(1 << 33) // layer.layout.slot_bytes + 1)
    rows = make_rows(layer, num_tokens, TOP_K)
    assert torch.equal(run(far, rows), run(layer, rows))


def test_the_trial_of_a_device_finds_a_kernel_that_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(available, "has_driver", lambda: True)
    trial = available.missing.__wrapped__  # without what was found before
    assert trial(DEVICE) is None
    monkeypatch.setattr(kernels, "add_choices", {(available.TOKENS, 1): lambda *_, **__: None})
    assert trial(DEVICE) == "a Triton kernel gave a wrong result"
    monkeypatch.setattr(kernels, "add_choices", None)
    assert "a Triton kernel failed: 'NoneType'" in trial(DEVICE)
