"""``quant_method: bitsandbytes``: what transformers saves with that library, which quantises linear layers alone.

- 4 bits (NF4, FP4): ``X.weight`` uint8 ``(out * in / 2, 1)``, two codes per byte, the first in the high half;
  ``X.weight.quant_map``, the number of each code; and ``X.weight.absmax``, a scale for each block of 64 weights, in the
  order of rows. With double quantisation these are bytes, whose numbers are ``X.weight.nested_quant_map``, times
  ``X.weight.nested_absmax`` for each 256 of them, plus an offset. That, and the shape of the matrix, is in
  ``X.weight.quant_state.bitsandbytes__nf4``, which is JSON.
- 8 bits (LLM.int8): ``X.weight`` int8 ``(out, in)``, and ``X.SCB`` ``(out,)``, 127 times the scale of each output. The
  weights of outliers are no more precise, so nothing else is stored of them.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch

from expert_store import CheckpointError, TensorSource, read_tensor
from server.kernels.formats import group_int8, lookup4
from server.model.quantised.ints import NIBBLE
from server.model.quantised.matrix import SlotTensor, Specs, StoredMatrix, expect, require

WEIGHT = ".weight"
STATES = ("quant_state.bitsandbytes__nf4", "quant_state.bitsandbytes__fp4")
NESTED = ("nested_absmax", "nested_quant_map")  # of double quantisation
FORMAT = "weight_format"
LARGEST = 127
BLOCK = 64  # weights, unless a checkpoint says otherwise
MOST_BLOCK = 4096  # weights or scales; the most that the library has
MOST_STATE_BYTES = 4096


@dataclass(frozen=True)
class State:
    """The description of a matrix in a checkpoint."""

    shape: tuple[int, int]  # (out, in)
    block: int  # weights
    nested_block: int  # scales; 0 without double quantisation
    offset: float

    @classmethod
    def of(cls, stored: torch.Tensor, name: str) -> Self:
        """Read the description.

        Raises:
            CheckpointError: it is not one.
        """
        try:
            found = json.loads(bytes(stored.tolist()))
            out_features, in_features = (int(size) for size in found["shape"])
            block, nested_block = int(found["blocksize"]), int(found.get("nested_blocksize", 0))
            if min(out_features, in_features, block) < 1 or nested_block < 0 or max(block, nested_block) > MOST_BLOCK:
                raise ValueError(found)  # noqa: TRY301  as any other error here
            return cls((out_features, in_features), block, nested_block, float(found.get("nested_offset", 0.0)))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise CheckpointError(
                f"{name} does not describe a matrix ({error!r}); download the checkpoint again"
            ) from error


class BitsAndBytes:
    """The scheme of bitsandbytes.

    Args:
        bits: of the weights that the config names.
    """

    dimensions = 2

    def __init__(self, bits: int):
        self._bits = bits
        self._states: dict[tuple[str, tuple[int, ...]], State] = {}

    def name_of(self, codes: TensorSource) -> str | None:
        is_codes = codes.dtype in {torch.uint8, torch.int8} and codes.name.endswith(WEIGHT)
        return codes.name if is_codes else None

    def parts(self, codes: TensorSource, index: Mapping[str, TensorSource]) -> dict[str, TensorSource]:
        if codes.dtype == torch.int8:
            module = codes.name.removesuffix(WEIGHT)
            parts = {"SCB": require(index, codes, f"{module}.SCB")}
            return parts | ({FORMAT: index[f"{module}.{FORMAT}"]} if f"{module}.{FORMAT}" in index else {})
        parts = {role: require(index, codes, f"{codes.name}.{role}") for role in ("absmax", "quant_map")}
        parts["state"] = require(index, codes, *(f"{codes.name}.{state}" for state in STATES))
        if parts["absmax"].dtype == torch.uint8:
            parts |= {role: require(index, codes, f"{codes.name}.{role}") for role in NESTED}
        return parts

    def matrix(self, codes: TensorSource, parts: Mapping[str, TensorSource]) -> StoredMatrix:
        if codes.dtype == torch.int8:
            return _bytes_matrix(codes, parts["SCB"])
        state = self._state(codes, parts["state"])
        out_features, in_features = state.shape
        if out_features * in_features != 2 * math.prod(codes.shape):
            raise CheckpointError(
                f"{codes.name} has shape {list(codes.shape)}; a matrix of {list(state.shape)} needs "
                f"{out_features * in_features // 2:,} bytes"
            )
        num_scales = -(-out_features * in_features // state.block)
        expect(parts["absmax"], (num_scales,), codes)
        expect(parts["quant_map"], (lookup4.NUMBERS,), codes)
        nested = [parts[role] for role in NESTED if role in parts]
        if nested:
            expect(parts["nested_absmax"], (-(-num_scales // max(1, state.nested_block)),), codes)
            expect(parts["nested_quant_map"], (256,), codes)
        specs = _specs(state.shape, state.block, codes.name)
        scales = (parts["absmax"], parts["state"], *nested)
        made = {
            lookup4.CODES: ((codes,), lambda read: _in_order(read[0], specs[lookup4.CODES][1])),
            lookup4.SCALE: (scales, lambda read: _scales(read, state, parts["state"].name)),
            lookup4.TABLE: ((parts["quant_map"],), None),
        }
        tensors = (SlotTensor(suffix, *spec, *made[suffix]) for suffix, spec in specs.items())
        return StoredMatrix(state.shape, tuple(tensors), is_out_in=True)

    def specs(self, out_features: int, in_features: int) -> Specs:
        shape = (out_features, in_features)
        return _specs(shape, BLOCK, "a matrix") if self._bits == NIBBLE else _bytes_specs(shape)

    def _state(self, codes: TensorSource, stored: TensorSource) -> State:
        """Return the description of a matrix, which is read once for all layers and experts."""
        key = re.sub(r"\.\d+\.", ".#.", codes.name), codes.shape  # numbers of layers and experts
        if key not in self._states:
            if stored.extent.nbytes > MOST_STATE_BYTES:
                raise CheckpointError(f"{stored.name} has {stored.extent.nbytes:,} bytes, too many for a description")
            self._states[key] = State.of(read_tensor(stored), stored.name)
        return self._states[key]


def _specs(shape: tuple[int, int], block: int, name: str) -> Specs:
    """Return the specs of a matrix of 4 bits. Its groups are parts of blocks that end where rows do."""
    group = math.gcd(shape[1], block)
    if group % 2:
        raise CheckpointError(f"{name} has {shape[1]} inputs in blocks of {block}, which is not supported")
    return lookup4.specs(*shape, group)


def _bytes_specs(shape: tuple[int, int]) -> Specs:
    return {group_int8.CODES: (torch.int8, shape), group_int8.STEPS: (torch.float32, (shape[0], 1))}


def _bytes_matrix(codes: TensorSource, scales: TensorSource) -> StoredMatrix:
    expect(scales, codes.shape[:1], codes)
    shape = (codes.shape[0], codes.shape[1])
    specs = _bytes_specs(shape)
    tensors = (
        SlotTensor(group_int8.CODES, *specs[group_int8.CODES], (codes,)),
        SlotTensor(
            group_int8.STEPS, *specs[group_int8.STEPS], (scales,), lambda read: read[0].float().unsqueeze(1) / LARGEST
        ),
    )
    return StoredMatrix(shape, tensors, is_out_in=True)


def _in_order(codes: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Exchange the halves of bytes."""
    return (codes << NIBBLE | codes >> NIBBLE).view(shape)


def _scales(read: Sequence[torch.Tensor], known: State, name: str) -> torch.Tensor:
    """Return the scale of each group, float32 ``(out, groups)``.

    Args:
        read: scales, the matrix's own description, and for double quantisation the scales and numbers of these.
        known: the description of another expert's matrix.
    """
    scales, stored, *nested = read
    state = State.of(stored, name)
    if (state.shape, state.block, state.nested_block) != (known.shape, known.block, known.nested_block):
        raise CheckpointError(f"{name} describes a matrix of {list(state.shape)}; others have {list(known.shape)}")
    if nested:
        factors, numbers = nested
        by_scale = factors.float().repeat_interleave(state.nested_block)[: len(scales)]
        scales = numbers.float()[scales.long()] * by_scale + state.offset
    group = math.gcd(state.shape[1], state.block)
    count = math.prod(state.shape) // group
    return scales.float().repeat_interleave(state.block // group)[:count].view(state.shape[0], -1)
