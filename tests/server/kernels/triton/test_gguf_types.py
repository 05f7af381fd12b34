"""Triton's kernels decode the types of GGUF files as torch does, bit for bit."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl

from server.kernels.formats.file_blocks import FileBlocks
from server.kernels.formats.file_blocks.codebooks import codebook_on
from server.kernels.formats.ggml_types import GGML_TYPES, GgmlType
from server.kernels.formats.superblocks import Superblocks
from server.kernels.triton.available import has_driver
from server.kernels.triton.weights import load_weights
from tests.server.kernels.formats.ggml_matrices import random_rows

DEVICE = torch.device("cuda" if has_driver() else "cpu")
OUTPUTS, INPUTS = 32, 512
FORMS = [kind for kind in GGML_TYPES.values() if isinstance(kind.format, Superblocks | FileBlocks)]


@triton.jit
def decode(slot, codebook, scales, output, K, FORM: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    """Write a matrix as float32."""
    n = tl.arange(0, BLOCK_N)[:, None]
    k = tl.arange(0, BLOCK_K)[None, :]
    tile = load_weights(slot, codebook, 0, scales, 0, n, k, BLOCK_N, K, FORM, False, 1, 1, 0, False)
    tl.store(output + n * K + k, tile)


@pytest.mark.parametrize("kind", FORMS, ids=lambda kind: kind.name)
def test_a_matrix_is_decoded_bit_for_bit(kind: GgmlType) -> None:
    assert isinstance(kind.format, Superblocks | FileBlocks)
    form = kind.format.kind
    tensors = kind.repack("w", random_rows(kind.name, OUTPUTS, INPUTS), INPUTS)
    codes, *scales = (tensor.flatten() for name, tensor in tensors.items() if not name.endswith("_shape"))
    slot = torch.cat([codes, *scales]).to(DEVICE)
    codebook, output = codebook_on(DEVICE, form), torch.empty((OUTPUTS, INPUTS), device=DEVICE)
    options = {"FORM": int(form), "BLOCK_N": OUTPUTS, "BLOCK_K": INPUTS}
    decode[1,](slot, slot if codebook is None else codebook, len(codes), output, INPUTS, **options)
    assert torch.equal(output.cpu(), kind.dequantise(tensors, "w"))
