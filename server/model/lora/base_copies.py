"""Compares copies of the base model's embedding and head, which PEFT saves with adapters of them, with its own tensors.

PEFT would put such a copy in the place of the model's tensor, so only an equal one can be left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch

from expert_store import read_tensor
from expert_store.catalog import TensorSource
from server.kernels.formats.blocks import OUTPUTS
from server.model.quantised.embedding import QuantisedEmbedding
from server.model.quantised.linear import QuantisedMatrix

CHUNK_WEIGHTS = 1 << 22  # weights that are compared at a time
# Rounding to bfloat16, and of numbers too small for float16: models are trained in one dtype and served in another.
RELATIVE, ABSOLUTE = 2.0**-8, 2.0**-24
MOST_QUANTISATION_ERROR = 0.2  # of a quantised matrix, relative to its norm


def is_copy(source: TensorSource, module: Any) -> bool:
    """Return True if a tensor of a file has the weights of a module, but for rounding.

    Args:
        module: an embedding or a linear layer.

    Raises:
        ExpertStoreError: the tensor can't be read.
    """
    if isinstance(module, QuantisedEmbedding):
        module = module.table
    if not source.dtype.is_floating_point or source.shape != _shape(module):
        return False
    if not isinstance(module, QuantisedMatrix):
        return all(torch.allclose(given, own, rtol=RELATIVE, atol=ABSOLUTE) for given, own in _chunks(source, module))
    error = norm = 0.0
    for given, own in _chunks(source, module):
        error += float((given - own).square().sum())
        norm += float(given.square().sum())
    return error <= MOST_QUANTISATION_ERROR**2 * norm


def is_zero(source: TensorSource) -> bool:
    """Return True if all numbers of a tensor of a file are zero.

    Raises:
        ExpertStoreError: it can't be read.
    """
    return not any(bool(part.any()) for part in map(read_tensor, _parts(source)))


def _shape(module: Any) -> tuple[int, ...]:
    if isinstance(module, QuantisedMatrix):
        return module.out_features, module.in_features
    return tuple(module.weight.shape)


def _chunks(source: TensorSource, module: Any) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield rows of the tensor and of the module, float32 each."""
    first = 0
    for part in _parts(source):
        count = part.shape[0]
        if isinstance(module, QuantisedMatrix):
            own = module.rows(first, count)
        else:
            own = module.weight.detach()[first : first + count]
        yield read_tensor(part).float(), own.float().cpu()
        first += count


def _parts(source: TensorSource) -> Iterator[TensorSource]:
    """Yield a tensor in complete blocks of rows."""
    if not source.shape:
        yield source
        return
    count = max(1, CHUNK_WEIGHTS // max(1, math.prod(source.shape[1:]) * OUTPUTS)) * OUTPUTS
    for first in range(0, source.shape[0], count):
        yield source.rows(first, min(count, source.shape[0] - first))
