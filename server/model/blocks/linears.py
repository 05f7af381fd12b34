"""Linear layers as the native kernels read them."""

from __future__ import annotations

from torch import nn

from server.kernels.native.linear import plain_matrix
from server.kernels.native.structures.matrices import Format, Matrix
from server.model.blocks.errors import UnsupportedLayerError
from server.model.quantised.linear import QuantisedLinear

Linear = nn.Linear | QuantisedLinear
LINEARS = (nn.Linear, QuantisedLinear)


def matrix_of(linear: Linear, *, takes_order: bool = False) -> Matrix:
    """Describe a linear layer's weights to the kernels.

    Args:
        takes_order: whether the kernels look at the order of its columns there.
    """
    matrix = linear.matrix if isinstance(linear, QuantisedLinear) else plain_matrix(linear.weight)
    if matrix is None:
        is_quantised = isinstance(linear, QuantisedLinear)
        raise UnsupportedLayerError(
            f"its weights are {'of an unknown format' if is_quantised else linear.weight.dtype}"
        )
    if matrix.order and not takes_order:
        raise UnsupportedLayerError("its columns are in another order than its inputs")
    return matrix


def no_matrix() -> Matrix:
    """A matrix that is not there."""
    return Matrix(format=Format.FLOAT32)
