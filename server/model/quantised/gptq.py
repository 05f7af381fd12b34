"""``quant_method: gptq`` and ``awq``: ``X.qweight``, ``X.qzeros`` and ``X.scales`` instead of ``X.weight``.

GPTQ's ``qweight`` is int32 ``(in * bits / 32, out)``, consecutive inputs from the lowest bits, with ``X.g_idx``, the
group of each input. Its first format stores zeros minus one. AWQ's ``qweight`` (for its GEMM kernels) is
``(in, out / 8)``, with the eight outputs of an integer in the order 0, 2, 4, 6, 1, 3, 5, 7. Zeros are packed like codes
in AWQ, and in the order of outputs in GPTQ; scales are ``(groups, out)``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from expert_store import TensorSource
from server.kernels.formats.group_int4 import repack_int4
from server.model.quantised.ints import NIBBLE, WIDTH, IntTensors, int_matrix, int_specs, unpack
from server.model.quantised.matrix import Specs, StoredMatrix, expect, require

CODES = ".qweight"
AWQ_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)  # place of each output in its integer


class _Packed:
    """The base of both schemes.

    Args:
        group: inputs per group; None for one group.
        roles: the roles of the tensors that every matrix has.
    """

    dimensions = 2

    def __init__(self, bits: int, group: int | None, roles: Sequence[str]):
        self._bits, self._group, self._roles = bits, group, roles

    def name_of(self, codes: TensorSource) -> str | None:
        return codes.name.removesuffix(CODES) + ".weight" if codes.name.endswith(CODES) else None

    def parts(self, codes: TensorSource, index: Mapping[str, TensorSource]) -> dict[str, TensorSource]:
        module = codes.name.removesuffix(CODES)
        return {role: require(index, codes, f"{module}.{role}") for role in self._roles}


class Gptq(_Packed):
    """The scheme of GPTQ.

    Args:
        is_v1: the first format, which stores zeros minus one.
        has_order: a group may consist of any inputs.
    """

    def __init__(self, bits: int, group: int | None, *, is_v1: bool, has_order: bool):
        super().__init__(bits, group, ["scales", "qzeros", "g_idx"] if has_order else ["scales", "qzeros"])
        self._is_v1, self._has_order = is_v1, has_order

    def parts(self, codes: TensorSource, index: Mapping[str, TensorSource]) -> dict[str, TensorSource]:
        name = codes.name.removesuffix(CODES) + ".g_idx"  # often present, but not needed
        return super().parts(codes, index) | ({"g_idx": index[name]} if name in index else {})

    def matrix(self, codes: TensorSource, parts: Mapping[str, TensorSource]) -> StoredMatrix:
        bits = self._bits
        out_features, in_features = codes.shape[1], codes.shape[0] * WIDTH // bits
        group = self._group or in_features
        groups = -(-in_features // group)
        expect(parts["scales"], (groups, out_features), codes)
        expect(parts["qzeros"], (groups, out_features * bits // WIDTH), codes)
        if "g_idx" in parts:
            expect(parts["g_idx"], (in_features,), codes)

        def to_zeros(packed: torch.Tensor) -> torch.Tensor:
            zeros = unpack(packed, bits)
            return zeros + 1 & (1 << bits) - 1 if self._is_v1 else zeros

        return int_matrix(
            IntTensors(
                (out_features, in_features),
                bits,
                group,
                codes,
                parts["scales"],
                parts["qzeros"],
                parts["g_idx"] if self._has_order else None,
                to_codes=repack_int4.blocks_of_inputs if bits == NIBBLE else lambda packed: unpack(packed.mT, bits),
                to_groups=lambda scale: scale,
                to_zeros=to_zeros,
            )
        )

    def specs(self, out_features: int, in_features: int) -> Specs:
        shape, group = (out_features, in_features), self._group or in_features
        return int_specs(shape, self._bits, group, torch.float16, has_zero=True, has_order=self._has_order)


class Awq(_Packed):
    """The scheme of AWQ with 4 bits.

    Args:
        has_zero: there are zeros; without them, the middle code means zero.
    """

    def __init__(self, group: int | None, *, has_zero: bool):
        super().__init__(NIBBLE, group, ["scales", "qzeros"] if has_zero else ["scales"])
        self._has_zero = has_zero

    def matrix(self, codes: TensorSource, parts: Mapping[str, TensorSource]) -> StoredMatrix:
        in_features, out_features = codes.shape[0], codes.shape[1] * WIDTH // NIBBLE
        group = self._group or in_features
        groups = -(-in_features // group)
        expect(parts["scales"], (groups, out_features), codes)
        if self._has_zero:
            expect(parts["qzeros"], (groups, codes.shape[1]), codes)
        return int_matrix(
            IntTensors(
                (out_features, in_features),
                NIBBLE,
                group,
                codes,
                parts["scales"],
                parts.get("qzeros"),
                None,
                to_codes=repack_int4.blocks_of_outputs,
                to_groups=lambda scale: scale,
                to_zeros=_unpack_awq,
            )
        )

    def specs(self, out_features: int, in_features: int) -> Specs:
        shape, group = (out_features, in_features), self._group or in_features
        return int_specs(shape, NIBBLE, group, torch.float16, has_zero=self._has_zero, has_order=False)


def _unpack_awq(packed: torch.Tensor) -> torch.Tensor:
    """int32 ``(n, out / 8)`` to uint8 ``(n, out)``."""
    codes = unpack(packed, NIBBLE).unflatten(1, (-1, len(AWQ_PLACES)))  # type: ignore[no-untyped-call]
    in_order: torch.Tensor = codes[..., list(AWQ_PLACES)].flatten(1)
    return in_order
