"""Matrices of 4-bit and 8-bit integers with scales of groups, however their codes are packed.

Codes are repacked while they are read, without loss: 4-bit ones into blocks that the processor multiplies by as they
are, 8-bit ones into rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from expert_store import CheckpointError, TensorSource
from server.kernels import int4, int4_exact, int8, int8_groups

from .matrix import SlotTensor, Specs, StoredMatrix

Unpack = Callable[[torch.Tensor], torch.Tensor]
WIDTH = 32  # bits of the integers that codes are packed in
NIBBLE = 4
BYTE_MIDDLE = 128


@dataclass(frozen=True)
class IntTensors:
    """The tensors of a matrix and how they are unpacked.

    A weight is ``(code - zero) * scale``; without zeros the middle code is zero. ``order`` is ``(in,)``, the group of
    each input, where that is not the input's place divided by the group's size.
    """

    shape: tuple[int, int]  # (out, in)
    bits: int
    group: int  # inputs
    codes: TensorSource
    scale: TensorSource
    zero: TensorSource | None
    order: TensorSource | None
    to_codes: Unpack  # of 4 bits: uint8 (blocks, in, block / 2); of 8: uint8 (out, in)
    to_groups: Unpack  # of scales: (groups, out)
    to_zeros: Unpack  # uint8 (groups, out)

    @property
    def num_groups(self) -> int:
        return -(-self.shape[1] // self.group)


def int_specs(
    shape: tuple[int, int], bits: int, group: int, scale_dtype: torch.dtype, has_zero: bool, has_order: bool
) -> Specs:
    """What lies in a slot of a matrix ``(out, in)``.

    Raises:
        CheckpointError: groups are of a size that no format has.
    """
    out_features, in_features = shape
    num_groups = -(-in_features // group)
    if bits == NIBBLE:
        size = int4_exact.group_of(in_features, num_groups, group)
        if size is None:
            raise CheckpointError(f"groups of {group} inputs are not supported, only multiples of 8")
        return int4_exact.specs(out_features, in_features, size, scale_dtype, has_zero, has_order)
    if in_features % group and num_groups > 1:
        raise CheckpointError(f"groups of {group} inputs do not divide {in_features}, which 8 bits need")
    if num_groups == 1 and scale_dtype == torch.bfloat16 and not has_zero and not has_order:
        return {"": (torch.int8, shape), int8.SCALE: (torch.float32, (out_features,))}
    specs: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
        int8_groups.CODES: (torch.int8, shape),
        int8_groups.STEPS: (scale_dtype, (out_features, num_groups)),
    }
    if has_zero:
        specs[int8_groups.ZERO] = (torch.int16, (out_features, num_groups))
    if has_order:
        specs[int8_groups.ORDER] = (torch.int32, (in_features,))
    return specs


def int_matrix(given: IntTensors) -> StoredMatrix:
    """The matrix of these tensors, whose shapes have been checked.

    Raises:
        CheckpointError: groups are of a size that no format has.
    """
    has_zero, has_order = given.zero is not None, given.order is not None
    try:
        specs = int_specs(given.shape, given.bits, given.group, given.scale.dtype, has_zero, has_order)
    except CheckpointError as error:
        raise CheckpointError(f"{given.codes.name}: {error}") from error
    scales = (given.scale,) if given.zero is None else (given.scale, given.zero)
    orders = () if given.order is None else (given.order,)
    makers: dict[str, tuple[tuple[TensorSource, ...], Callable[[Sequence[torch.Tensor]], torch.Tensor]]]
    if given.bits == NIBBLE:
        makers = {
            "": ((given.codes, *orders), lambda read: _codes(given, read)),
            int4.SCALE: (scales, lambda read: _scales(given, read)),
            int4.REST: (scales, lambda read: int4_exact.rest(_scales(given, read))),
            int4.ORDER: (orders, lambda read: _order(given, read[0])),
        }
    else:
        codes = ((given.codes, *orders), lambda read: signed(_codes(given, read)))
        makers = {
            "": codes,
            int8.SCALE: (scales, lambda read: given.to_groups(read[0])[0]),
            int8_groups.CODES: codes,
            int8_groups.STEPS: (scales[:1], lambda read: given.to_groups(read[0]).mT),
            int8_groups.ZERO: (scales[1:], lambda read: given.to_zeros(read[0]).mT.short() - BYTE_MIDDLE),
            int8_groups.ORDER: (orders, lambda read: _order(given, read[0])),
        }
    return StoredMatrix(
        given.shape, tuple(SlotTensor(suffix, *spec, *makers[suffix]) for suffix, spec in specs.items())
    )


def unpack(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes from int32 integers, those in the lowest bits first: ``(..., n)`` to uint8 ``(..., n * 32 / bits)``."""
    codes = packed.contiguous().view(torch.uint8)
    return torch.stack((codes & 15, codes >> 4), -1).flatten(-2) if bits == NIBBLE else codes


def signed(codes: torch.Tensor) -> torch.Tensor:
    """Bytes less 128, as int8."""
    return (codes ^ BYTE_MIDDLE).view(torch.int8)


def _codes(given: IntTensors, read: Sequence[torch.Tensor]) -> torch.Tensor:
    codes = given.to_codes(read[0])
    return codes if given.order is None else codes.index_select(1, _order(given, read[1]))


def _scales(given: IntTensors, read: Sequence[torch.Tensor]) -> torch.Tensor:
    in_features = given.shape[1]
    size = int4_exact.group_of(in_features, given.num_groups, given.group)
    assert size is not None
    zero = None if given.zero is None else given.to_zeros(read[1])
    return int4_exact.scales(given.to_groups(read[0]), zero, in_features, (given.group, size))


def _order(given: IntTensors, groups: torch.Tensor) -> torch.Tensor:
    """The inputs, those of the first group first, from the group of each."""
    order = groups.argsort(stable=True)
    if not torch.equal(groups[order].long(), torch.arange(len(groups)) // given.group):
        assert given.order is not None
        raise CheckpointError(f"{given.order.name} has groups that are not of {given.group} inputs each")
    return order.int()
