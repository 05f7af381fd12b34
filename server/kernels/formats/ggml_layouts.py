"""The layouts of weight types in GGUF files, read by torch: codes and scales of rows of blocks.

Each function takes uint8 ``(out, blocks, bytes)``. Those of ``SUPERBLOCKS`` return the codes, uint8 ``(out, in)``, and
the parts of records that ``Superblocks.pack`` takes; the others return the tensors of their slot format by suffix.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from server.kernels.formats import block_int8, blocks, fp4
from server.kernels.formats.blocks import OUTPUTS
from server.kernels.native.structures.matrices import Format

Layout = tuple[torch.Tensor, list[torch.Tensor]]

_NIBBLES = (0, 4)
_PAIRS = (0, 2, 4, 6)
_NOT_A_NUMBER = 0x7F  # of E4M3


def _fields(raw: torch.Tensor, *sizes: int) -> tuple[torch.Tensor, ...]:
    """Split blocks into fields of some bytes each."""
    return tuple(torch.split(raw, list(sizes), 2))


def _parts(packed: torch.Tensor, run: int, shifts: tuple[int, ...]) -> torch.Tensor:
    """Codes ``(out, blocks, inputs)`` of bytes in runs: first those at the first shift of a run's bytes, and so on."""
    runs = packed.reshape(*packed.shape[:2], -1, 1, run)
    mask = (1 << 8 // len(shifts)) - 1
    return (runs >> torch.tensor(shifts, dtype=torch.uint8).view(-1, 1) & mask).flatten(2)


def _nibbles(raw: torch.Tensor) -> torch.Tensor:
    return _parts(raw, 16, _NIBBLES)


def _bits(packed: torch.Tensor) -> torch.Tensor:
    """The bits of 32-bit words ``(out, blocks, 4)``, from the lowest: ``(out, blocks, 32)``."""
    return _parts(packed, 1, tuple(range(8)))


def _q4_0(raw: torch.Tensor) -> Layout:
    d, codes = _fields(raw, 2, 16)
    return _nibbles(codes).flatten(1), [d]


def _q4_1(raw: torch.Tensor) -> Layout:
    d, low, codes = _fields(raw, 2, 2, 16)
    return _nibbles(codes).flatten(1), [torch.cat((d, low), 2)]


def _q5_0(raw: torch.Tensor) -> Layout:
    d, high, codes = _fields(raw, 2, 4, 16)
    return (_nibbles(codes) | _bits(high) << 4).flatten(1), [d]


def _q5_1(raw: torch.Tensor) -> Layout:
    d, low, high, codes = _fields(raw, 2, 2, 4, 16)
    return (_nibbles(codes) | _bits(high) << 4).flatten(1), [torch.cat((d, low), 2)]


def _mxfp4(raw: torch.Tensor) -> Layout:
    exponents, codes = _fields(raw, 1, 16)
    return _nibbles(codes).flatten(1), [exponents]


def _q2_k(raw: torch.Tensor) -> Layout:
    scales, codes, d = _fields(raw, 16, 64, 4)
    return _parts(codes, 32, _PAIRS).flatten(1), [d, scales]


def _q3_k(raw: torch.Tensor) -> Layout:
    high, codes, scales, d = _fields(raw, 32, 64, 12, 2)
    return (_parts(codes, 32, _PAIRS) | _parts(high, 32, tuple(range(8))) << 2).flatten(1), [d, scales]


def _q4_k(raw: torch.Tensor) -> Layout:
    d, scales, codes = _fields(raw, 4, 12, 128)
    return _parts(codes, 32, _NIBBLES).flatten(1), [d, scales]


def _q5_k(raw: torch.Tensor) -> Layout:
    d, scales, high, codes = _fields(raw, 4, 12, 32, 128)
    return (_parts(codes, 32, _NIBBLES) | _parts(high, 32, tuple(range(8))) << 4).flatten(1), [d, scales]


def _q6_k(raw: torch.Tensor) -> Layout:
    codes, high, scales, d = _fields(raw, 128, 64, 16, 2)
    return (_parts(codes, 64, _NIBBLES) | _parts(high, 32, _PAIRS) << 4).flatten(1), [d, scales]


def _iq4_xs(raw: torch.Tensor) -> Layout:
    d, high, low, codes = _fields(raw, 2, 2, 4, 128)
    scales = _parts(low, 1, _NIBBLES) | _parts(high, 1, _PAIRS) << 4
    return _nibbles(codes).flatten(1), [d, scales - 32]  # as int8 in a byte


SUPERBLOCKS = {
    Format.Q4_0: _q4_0,
    Format.Q4_1: _q4_1,
    Format.Q5_0: _q5_0,
    Format.Q5_1: _q5_1,
    Format.IQ4_NL: _q4_0,
    Format.BLOCK_MXFP4: _mxfp4,
    Format.Q2_K: _q2_k,
    Format.Q3_K: _q3_k,
    Format.Q4_K: _q4_k,
    Format.Q5_K: _q5_k,
    Format.Q6_K: _q6_k,
    Format.IQ4_XS: _iq4_xs,
}


def q8_0(raw: torch.Tensor) -> dict[str, torch.Tensor]:
    """The tensors of ``block_int8``."""
    shape = blocks.shape_specs(block_int8.CODES, len(raw), raw.shape[1] * blocks.GROUP)
    of_shape = {name: torch.tensor((len(raw), raw.shape[1] * blocks.GROUP), dtype=dtype) for name, dtype, _ in shape}
    scales, codes = _fields(F.pad(raw, (0, 0, 0, 0, 0, -len(raw) % OUTPUTS)), 2, 32)
    codes = codes.reshape(-1, OUTPUTS, raw.shape[1] * 8, 4).transpose(1, 2)
    scales = scales.reshape(-1, OUTPUTS, raw.shape[1], 2).transpose(1, 2)
    return {
        block_int8.CODES: codes.contiguous().view(torch.int8),
        block_int8.SCALE: scales.contiguous().view(torch.float16).squeeze(3),
        **of_shape,
    }


def mxfp4(raw: torch.Tensor) -> dict[str, torch.Tensor]:
    """The tensors of ``fp4``: groups of 32 with exponents of two."""
    scales, codes = _fields(raw, 1, 16)
    return {fp4.BLOCKS: _neighbours(_nibbles(codes)), fp4.SCALES: scales.squeeze(2).contiguous()}


def nvfp4(raw: torch.Tensor) -> dict[str, torch.Tensor]:
    """The tensors of ``fp4``: groups of 16 with E4M3 numbers, none of them negative; NaN means zero."""
    scales, codes = _fields(raw, 4, 32)
    scales = scales.flatten(1) & _NOT_A_NUMBER
    scales = torch.where(scales == _NOT_A_NUMBER, 0, scales).to(torch.uint8).view(torch.float8_e4m3fn)
    groups = _parts(codes, 8, _NIBBLES).flatten(1).unflatten(1, (-1, 16))  # type: ignore[no-untyped-call]
    return {fp4.BLOCKS: _neighbours(groups), fp4.SCALES: scales}


def _neighbours(codes: torch.Tensor) -> torch.Tensor:
    """Codes of 4 bits, two neighbours a byte."""
    return codes[..., ::2] | codes[..., 1::2] << 4
