"""Matrices of 4-bit and 8-bit integers with a scale per group, in any packing.

Codes are repacked without loss as they are read: 4-bit codes into blocks that the processor's fused product takes,
8-bit codes into rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from expert_store import CheckpointError, TensorSource
from server.kernels.formats import channel_int8, group_int4, group_int8
from server.kernels.formats.group_int4 import repack_int4
from server.model.quantised.matrix import SlotTensor, Specs, StoredMatrix

Unpack = Callable[[torch.Tensor], torch.Tensor]
WIDTH = 32  # bits of the integers that hold packed codes
NIBBLE = 4
BYTE_MIDDLE = 128


@dataclass(frozen=True)
class IntTensors:
    """The tensors of a matrix, and functions to unpack them.

    A weight is ``(code - zero) * scale``; without zeros, the middle code means zero. ``order`` is ``(in,)``, the group
    of each input, unless that is the input's index divided by the group size.
    """

    shape: tuple[int, int]  # (out, in)
    bits: int
    group: int  # inputs
    codes: TensorSource
    scale: TensorSource
    zero: TensorSource | None
    order: TensorSource | None
    to_codes: Unpack  # to uint8: (blocks, in, block / 2) for 4 bits, (out, in) for 8 bits
    to_groups: Unpack  # scales to (groups, out)
    to_zeros: Unpack  # zeros to uint8 (groups, out)

    @property
    def num_groups(self) -> int:
        return -(-self.shape[1] // self.group)


def int_specs(
    shape: tuple[int, int], bits: int, group: int, scale_dtype: torch.dtype, *, has_zero: bool, has_order: bool
) -> Specs:
    """Return the specs of a matrix ``(out, in)`` in a slot.

    Raises:
        CheckpointError: no format supports the group size.
    """
    out_features, in_features = shape
    num_groups = -(-in_features // group)
    if bits == NIBBLE:
        size = repack_int4.group_of(in_features, num_groups, group)
        if size is None:
            raise CheckpointError(f"groups of {group} inputs are not supported; group sizes must be multiples of 8")
        return repack_int4.specs(out_features, in_features, size, scale_dtype, has_zero=has_zero, has_order=has_order)
    if in_features % group and num_groups > 1:
        raise CheckpointError(f"groups of {group} inputs do not divide {in_features} inputs, as 8 bits require")
    if num_groups == 1 and scale_dtype == torch.bfloat16 and not has_zero and not has_order:
        return {"": (torch.int8, shape), channel_int8.SCALE: (torch.float32, (out_features,))}
    specs: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
        group_int8.CODES: (torch.int8, shape),
        group_int8.STEPS: (scale_dtype, (out_features, num_groups)),
    }
    if has_zero:
        specs[group_int8.ZERO] = (torch.int16, (out_features, num_groups))
    if has_order:
        specs[group_int8.ORDER] = (torch.int32, (in_features,))
    return specs


def int_matrix(given: IntTensors) -> StoredMatrix:
    """Build the matrix of these tensors, whose shapes have been checked.

    Raises:
        CheckpointError: no format supports the group size.
    """
    has_zero, has_order = given.zero is not None, given.order is not None
    try:
        specs = int_specs(
            given.shape, given.bits, given.group, given.scale.dtype, has_zero=has_zero, has_order=has_order
        )
    except CheckpointError as error:
        raise CheckpointError(f"{given.codes.name}: {error}") from error
    scales = (given.scale,) if given.zero is None else (given.scale, given.zero)
    orders = () if given.order is None else (given.order,)
    makers: dict[str, tuple[tuple[TensorSource, ...], Callable[[Sequence[torch.Tensor]], torch.Tensor]]]
    if given.bits == NIBBLE:
        makers = {
            "": ((given.codes, *orders), lambda read: _codes(given, read)),
            group_int4.SCALE: (scales, lambda read: _scales(given, read)),
            group_int4.REST: (scales, lambda read: repack_int4.rest(_scales(given, read))),
            group_int4.ORDER: (orders, lambda read: _order(given, read[0])),
        }
    else:
        codes = ((given.codes, *orders), lambda read: signed(_codes(given, read)))
        makers = {
            "": codes,
            channel_int8.SCALE: (scales, lambda read: given.to_groups(read[0])[0]),
            group_int8.CODES: codes,
            group_int8.STEPS: (scales[:1], lambda read: given.to_groups(read[0]).mT),
            group_int8.ZERO: (scales[1:], lambda read: given.to_zeros(read[0]).mT.short() - BYTE_MIDDLE),
            group_int8.ORDER: (orders, lambda read: _order(given, read[0])),
        }
    return StoredMatrix(
        given.shape, tuple(SlotTensor(suffix, *spec, *makers[suffix]) for suffix, spec in specs.items())
    )


def unpack(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """Unpack codes from int32, the lowest bits first: ``(..., n)`` to uint8 ``(..., n * 32 / bits)``."""
    codes = packed.contiguous().view(torch.uint8)
    return torch.stack((codes & 15, codes >> 4), -1).flatten(-2) if bits == NIBBLE else codes


def signed(codes: torch.Tensor) -> torch.Tensor:
    """Subtract 128 from bytes, giving int8."""
    return (codes ^ BYTE_MIDDLE).view(torch.int8)


def _codes(given: IntTensors, read: Sequence[torch.Tensor]) -> torch.Tensor:
    codes = given.to_codes(read[0])
    return codes if given.order is None else codes.index_select(1, _order(given, read[1]))


def _scales(given: IntTensors, read: Sequence[torch.Tensor]) -> torch.Tensor:
    in_features = given.shape[1]
    size = repack_int4.group_of(in_features, given.num_groups, given.group)
    assert size is not None
    zero = None if given.zero is None else given.to_zeros(read[1])
    return repack_int4.scales(given.to_groups(read[0]), zero, in_features, (given.group, size))


def _order(given: IntTensors, groups: torch.Tensor) -> torch.Tensor:
    """Sort the inputs by their group."""
    order = groups.argsort(stable=True)
    if not torch.equal(groups[order].long(), torch.arange(len(groups)) // given.group):
        assert given.order is not None
        raise CheckpointError(f"{given.order.name} has groups with another size than {given.group} inputs")
    return order.int()
