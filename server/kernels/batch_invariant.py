"""Batch-invariant arithmetic: the result of a row does not depend on the other rows in the batch.

Within ``batch_invariant()``, products of rows with weights are computed in tiles (``invariant_matmul``). Functions
whose vector and scalar code differ in the last bits always take the vector code. Other functions are invariant
already: sums, means, norms and softmax over the last dimension, top-k and cumulative sums work row by row; additions,
products and roots are correctly rounded. Not covered are ``einsum``, convolutions, products whose leading size is not
that of the rows, and norms over 32,768 numbers or more, which several threads share if there is only one row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from server.kernels.invariant_matmul import batched_matmul, product

VECTORS = 64  # numbers; a multiple of the step of any processor's unrolled loop
PIECE = 1 << 14  # numbers that torch gives to one thread for any function, so that no split falls within a vector
MATRIX_DIMENSIONS = 2

_is_active: ContextVar[bool] = ContextVar("greenroom_batch_invariant", default=False)


@contextmanager
def batch_invariant() -> Iterator[None]:
    """Make those torch functions batch-invariant in this thread that models apply to tokens.

    Bits may still change with the number of threads, the processor and the build of torch.
    """
    token = _is_active.set(True)
    try:
        with _BatchInvariantMode():
            yield
    finally:
        _is_active.reset(token)


@contextmanager
def torch_functions() -> Iterator[None]:
    """Use torch's own functions within ``batch_invariant()``, for code that is batch-invariant by itself."""
    with torch._C.DisableTorchFunction():  # noqa: SLF001  there is no public name
        yield


def inherit_batch_invariant(is_invariant: bool) -> AbstractContextManager[None]:
    """Carry the mode over to another thread, given what ``is_batch_invariant`` returned in the first."""
    return batch_invariant() if is_invariant and not is_batch_invariant() else nullcontext()


def is_batch_invariant() -> bool:
    """Return True if this thread is within ``batch_invariant()``."""
    return _is_active.get()


class _BatchInvariantMode(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        replacement = _REPLACEMENTS.get(func)
        if replacement is None:
            return func(*args, **(kwargs or {}))
        return replacement(func, *args, **(kwargs or {}))


def _linear(func: Callable[..., Any], rows: torch.Tensor, weight: torch.Tensor, bias: Any = None) -> torch.Tensor:
    del func
    output = product(weight, rows.reshape(-1, rows.shape[-1])).view(*rows.shape[:-1], weight.shape[0])
    return output if bias is None else output + bias


def _matmul(func: Callable[..., Any], rows: torch.Tensor, matrix: torch.Tensor, **kwargs: Any) -> torch.Tensor:
    is_sum = rows.ndim >= MATRIX_DIMENSIONS and rows.shape[-1] > 1
    if is_sum and not kwargs:
        if matrix.ndim == MATRIX_DIMENSIONS:
            return _linear(func, rows, matrix.mT)
        if rows.ndim == MATRIX_DIMENSIONS:
            rows = rows.expand(*matrix.shape[:-2], *rows.shape)
        if matrix.shape[:-2] == rows.shape[:-2]:
            output = batched_matmul(matrix.mT.flatten(0, -3), rows.flatten(0, -3))
            return output.view(*rows.shape[:-1], -1)
    usual: torch.Tensor = func(rows, matrix, **kwargs)
    return usual


def _addmm(
    func: Callable[..., Any], added: torch.Tensor, rows: torch.Tensor, matrix: torch.Tensor, **kwargs: Any
) -> torch.Tensor:
    output: torch.Tensor = func(added, rows, matrix, **kwargs) if kwargs else _linear(func, rows, matrix.mT, added)
    return output


def _by_vectors(func: Callable[..., Any], values: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    if not values.is_cpu or kwargs.get("inplace"):
        output: torch.Tensor = func(values, *args, **kwargs)
        return output
    count = values.numel()
    if count <= PIECE and count % VECTORS == 0 and values.is_contiguous():
        result: torch.Tensor = func(values, *args, **kwargs)
        return result
    flat = F.pad(values.reshape(-1), (0, -count % VECTORS))
    parts = [func(piece, *args, **kwargs) for piece in torch.split(flat, PIECE)]
    return torch.cat(parts)[:count].view(values.shape)


def _power(func: Callable[..., Any], values: Any, exponent: Any, **kwargs: Any) -> torch.Tensor:
    is_exact = exponent == 2  # noqa: PLR2004
    if is_exact or not isinstance(values, torch.Tensor) or isinstance(exponent, torch.Tensor):
        output: torch.Tensor = func(values, exponent, **kwargs)
        return output
    return _by_vectors(func, values, exponent, **kwargs)


def _reciprocal_root(func: Callable[..., Any], values: torch.Tensor) -> torch.Tensor:
    if values.dtype == torch.float32:  # correctly rounded by both kinds of code
        output: torch.Tensor = func(values)
        return output
    return _by_vectors(func, values)


_REPLACEMENTS: dict[Callable[..., Any], Callable[..., Any]] = {
    F.linear: _linear,
    **dict.fromkeys(
        (
            torch.matmul,
            torch.Tensor.matmul,
            torch.Tensor.__matmul__,
            torch.mm,
            torch.Tensor.mm,
            torch.bmm,
            torch.Tensor.bmm,
        ),
        _matmul,
    ),
    **dict.fromkeys((torch.addmm, torch.Tensor.addmm), _addmm),
    **dict.fromkeys((torch.pow, torch.Tensor.pow, torch.Tensor.__pow__), _power),
    **dict.fromkeys((torch.rsqrt, torch.Tensor.rsqrt), _reciprocal_root),
    **dict.fromkeys(
        (
            F.silu,
            F.gelu,
            F.mish,
            F.elu,
            F.celu,
            F.selu,
            F.softplus,
            F.logsigmoid,
            F.hardswish,
            F.sigmoid,
            torch.sigmoid,
            torch.Tensor.sigmoid,
            torch.expm1,
            torch.Tensor.expm1,
        ),
        _by_vectors,
    ),
}
