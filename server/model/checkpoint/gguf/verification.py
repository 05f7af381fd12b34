"""Verifies GGUF files, which have no checksums: every byte is read, and no scale may be NaN or infinite."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch

from expert_store import CheckpointError, GgufTensor, TensorSource, read_tensor
from server.model.checkpoint.gguf.gguf_file import GgufFile

PART_BYTES = 64 << 20  # that are read at a time
HALVES: Mapping[str, tuple[int, ...]] = {  # the places of float16 scales and minima in a block
    **dict.fromkeys(("Q4_0", "Q5_0", "Q8_0", "IQ4_NL", "IQ4_XS"), (0,)),
    **dict.fromkeys(("IQ1_S", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"), (0,)),
    **dict.fromkeys(("Q4_1", "Q5_1", "Q4_K", "Q5_K"), (0, 2)),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q6_K": (208,),
    "TQ1_0": (52,),
    "TQ2_0": (64,),
}
MXFP4, NO_EXPONENT = "MXFP4", 255  # E8M0's NaN, the first byte of a block


def damaged_tensors(file: GgufFile, advance: Callable[[int], object]) -> dict[str, str]:
    """Read all tensors of a file, and return those that can't be used, with the reason.

    Args:
        advance: called with the numbers of bytes that were read.
    """
    damaged = {}
    for tensor in file.tensors.values():
        try:
            for part in _parts(tensor.source):
                if not _is_finite(tensor, read_tensor(part)):
                    damaged[tensor.name] = "it holds NaN or infinity"
                advance(part.extent.nbytes)
        except CheckpointError as error:
            damaged[tensor.name] = str(error)
    return damaged


def _parts(source: TensorSource) -> Iterator[TensorSource]:
    """Yield the rows of a tensor, some at a time."""
    rows = max(1, source.shape[0] * PART_BYTES // max(source.extent.nbytes, 1))
    for first in range(0, source.shape[0], rows):
        yield source.rows(first, min(rows, source.shape[0] - first))


def _is_finite(tensor: GgufTensor, values: torch.Tensor) -> bool:
    if tensor.type.dtype is not None:
        return not values.is_floating_point() or bool(values.isfinite().all())
    blocks = values.view(-1, tensor.type.nbytes)
    if tensor.type.name == MXFP4:
        return not bool((blocks[:, 0] == NO_EXPONENT).any())
    places = HALVES.get(tensor.type.name, ())
    return all(bool(blocks[:, at : at + 2].contiguous().view(torch.float16).isfinite().all()) for at in places)
