"""Native experts whose matrices reorder their inputs equal those of torch."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from server.kernels.format_table import describe_matrix
from server.kernels.formats import group_int4
from server.kernels.native.available import availability
from server.kernels.native.library import Kernels
from server.kernels.native.structures.experts import Activation, ExpertBatch, ExpertShape, Gate
from server.kernels.native.structures.matrices import Format
from tests.server.kernels.native.slots import Maker, Slot, Tensors, fill_slot

if not availability().runnable:
    pytest.skip("there are no native kernels here", allow_module_level=True)

HIDDEN, INTERMEDIATE = 128, 64
PARTS = {
    "gate_up_proj.0": (INTERMEDIATE, HIDDEN),
    "gate_up_proj.1": (INTERMEDIATE, HIDDEN),
    "down_proj": (HIDDEN, INTERMEDIATE),
}


def make_expert(seed: int) -> Tensors:
    make, tensors = Maker(seed), {}
    for name, shape in PARTS.items():
        made = make.int4(shape, 32, 64, torch.float16, has_zero=True, has_order=True)
        tensors.update({key.replace("w", name, 1): value for key, value in made.items()})
    return tensors


def run_reference(tensors: Tensors, rows: torch.Tensor) -> torch.Tensor:
    gate, up, down = (group_int4.dequantise(tensors, name) for name in PARTS)
    return (F.silu(rows @ gate.T) * (rows @ up.T)) @ down.T


def shape_of(slot: Slot) -> ExpertShape:
    gate, up, down = (describe_matrix(slot.parameters, name, False, *shape) for name, shape in PARTS.items())
    shape = ExpertShape(
        second=down,
        first_bias=-1,
        second_bias=-1,
        num_parts=2,
        gate=Gate(activation=Activation.SILU, has_gate=1),
    )
    shape.first[0], shape.first[1] = gate, up
    return shape


def test_each_row_takes_the_input_order_of_its_expert_and_part() -> None:
    experts = [make_expert(seed) for seed in range(3)]
    slots = [fill_slot(tensors) for tensors in experts]
    rows = torch.randn((9, HIDDEN), generator=torch.Generator().manual_seed(0))
    starts, choices = torch.tensor([0, 4, 5, 9]).int(), torch.randperm(9).int()
    addresses = torch.tensor([slot.address for slot in slots])
    outputs = torch.empty(9, HIDDEN)
    Kernels(2).experts(
        shape_of(slots[0]),
        ExpertBatch(
            slots=addresses.data_ptr(),
            starts=starts.data_ptr(),
            choices=choices.data_ptr(),
            x=rows.data_ptr(),
            outputs=outputs.data_ptr(),
            num_experts=3,
            top_k=1,
            x_stride=HIDDEN,
            x_format=Format.FLOAT32,
            is_exact=1,
        ),
    )
    for expert, tensors in enumerate(experts):
        chosen = choices[int(starts[expert]) : int(starts[expert + 1])].long()
        assert torch.allclose(outputs[chosen], run_reference(tensors, rows[chosen]), rtol=1e-4, atol=1e-4)
