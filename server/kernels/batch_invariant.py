"""Batch-invariant arithmetic: what a row gives does not depend on the rows around it.

Within ``batch_invariant()`` products of rows with weights are computed in tiles (``tiles``), and functions whose
vector and scalar code differ in their last bits are computed by vectors throughout. Sums, means, norms and softmax
over the last dimension, top-k and cumulative sums are row by row as they are, and additions, products and roots are
exact wherever they happen. What stays uncovered: ``einsum``, convolutions, products with another leading size than
the rows', and norms over 32,768 numbers or more, which several threads share if there is only one row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from .tiles import batched_product, product

VECTORS = 64  # numbers; a multiple of what any processor's unrolled loop takes at a time
PIECE = 1 << 14  # numbers that torch gives to one thread whatever the function, so that no split falls between vectors
MATRIX_DIMENSIONS = 2

_is_active: ContextVar[bool] = ContextVar("greenroom_batch_invariant", default=False)


@contextmanager
def batch_invariant() -> Iterator[None]:
    """Make torch's functions batch-invariant in this thread, as far as models use them on tokens.

    Bits may still change with the number of threads, the processor and the build of torch.
    """
    token = _is_active.set(True)
    try:
        with _BatchInvariantMode():
            yield
    finally:
        _is_active.reset(token)


@contextmanager
def usual_functions() -> Iterator[None]:
    """Within ``batch_invariant()``, leave to torch what is invariant by its own care."""
    with torch._C.DisableTorchFunction():  # noqa: SLF001  there is no public name
        yield


def keep_arithmetic(is_invariant: bool) -> AbstractContextManager[None]:
    """For another thread: arithmetic as it was where ``is_batch_invariant`` said so."""
    return batch_invariant() if is_invariant and not is_batch_invariant() else nullcontext()


def is_batch_invariant() -> bool:
    """Whether this thread is within ``batch_invariant()``."""
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
            output = batched_product(matrix.mT.flatten(0, -3), rows.flatten(0, -3))
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
        whole: torch.Tensor = func(values, *args, **kwargs)
        return whole
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
    if values.dtype == torch.float32:  # exact, by vectors or not
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
