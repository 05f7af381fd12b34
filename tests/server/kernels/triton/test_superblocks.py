"""Triton's kernels decode the types of GGUF files as torch does, bit for bit."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl

from server.kernels.formats.ggml_types import GGML_TYPES
from server.kernels.formats.superblocks import FORMATS, Superblocks
from server.kernels.triton.available import has_driver
from server.kernels.triton.superblocks import load_superblocks
from tests.server.kernels.formats.ggml_matrices import NUMBERS, random_rows

DEVICE = torch.device("cuda" if has_driver() else "cpu")
OUTPUTS, INPUTS = 32, 512


@triton.jit
def decode(codes, records, output, K, FORM: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    """Write a matrix as float32."""
    n = tl.arange(0, BLOCK_N)[:, None]
    k = tl.arange(0, BLOCK_K)[None, :]
    tl.store(output + n * K + k, load_superblocks(codes, records, n, k, K, k < K, FORM))


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.kind.name)
def test_a_matrix_is_decoded_bit_for_bit(form: Superblocks) -> None:
    kind = GGML_TYPES[NUMBERS[form.kind.name]]
    tensors = kind.repack("w", random_rows(kind.name, OUTPUTS, INPUTS), INPUTS)
    there = {name: tensor.to(DEVICE) for name, tensor in tensors.items()}
    output = torch.empty((OUTPUTS, INPUTS), device=DEVICE)
    codes, records = there["w" + form.CODES], there["w" + form.SCALE]
    decode[1,](codes, records, output, INPUTS, FORM=int(form.kind), BLOCK_N=OUTPUTS, BLOCK_K=INPUTS)
    assert torch.equal(output.cpu(), form.dequantise(tensors, "w"))
