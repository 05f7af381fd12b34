"""ResidualStream: rows of a layer whose last sum is computed by the norm that follows it, in the same launch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from torch.utils._pytree import tree_map_only

MOST_NUMBERS = 1 << 20  # of the rows; sums of pieces of prompts, which have more, are not put off
ADDS = {torch.add, torch.Tensor.add, torch.Tensor.__add__, torch.Tensor.__radd__}
ABOUT = {  # what is known before the sum is
    torch.Tensor.shape.__get__,  # type: ignore[attr-defined]
    torch.Tensor.dtype.__get__,  # type: ignore[attr-defined]
    torch.Tensor.device.__get__,
    torch.Tensor.ndim.__get__,  # type: ignore[attr-defined]
    torch.Tensor.is_cuda.__get__,  # type: ignore[attr-defined]
    torch.Tensor.dim,
    torch.Tensor.numel,
    torch.Tensor.size,
    torch.Tensor.__len__,
}

Norm = Callable[[torch.Tensor], torch.Tensor]
SumAndNorm = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


class ResidualStream(torch.Tensor):
    """The rows of a tensor, or of the sum of two that is still to come.

    A norm gets the sum and computes it by the way; any other function gets the sum, computed by torch. So its value is
    the same whoever asks for it first.
    """

    _parts: tuple[torch.Tensor, ...]

    @staticmethod
    def __new__(cls: type[Self], *parts: torch.Tensor) -> Self:
        rows = parts[0]
        make: Any = torch.Tensor._make_wrapper_subclass  # noqa: SLF001  torch's own way
        made: Self = make(cls, rows.shape, strides=rows.stride(), dtype=rows.dtype, device=rows.device)
        return made

    def __init__(self, *parts: torch.Tensor):
        super().__init__()
        self._parts = parts

    def whole(self) -> torch.Tensor:
        """Return the rows, after they were added if that is still to be done."""
        if len(self._parts) > 1:
            self._parts = (self._parts[0] + self._parts[1],)
        return self._parts[0]

    def normed(self, norm: Norm, add_and_norm: SumAndNorm) -> torch.Tensor:
        """Return the normed rows.

        Args:
            add_and_norm: returns the sum of two tensors, and the normed sum.
        """
        if len(self._parts) == 1:
            return norm(self._parts[0])
        total, normed = add_and_norm(*self._parts)
        self._parts = (total,)
        return normed

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in ABOUT:
            with torch._C.DisableTorchFunctionSubclass():  # noqa: SLF001  as above
                return function(*args, **(kwargs or {}))
        args, kwargs = _wholes(args), _wholes(kwargs or {})
        if function in ADDS and not kwargs and _can_wait(*args):
            return cls(*args)
        return function(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return function(*_wholes(args), **_wholes(kwargs or {}))


def _wholes(values: Any) -> Any:
    return tree_map_only(ResidualStream, ResidualStream.whole, values)


def _can_wait(one: Any, other: Any) -> bool:
    """Return whether the norm's kernel can add two values."""
    if not (isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor)):
        return False
    is_alike = one.shape == other.shape and one.dtype == other.dtype and one.device == other.device
    return is_alike and one.is_contiguous() and other.is_contiguous() and 0 < one.numel() <= MOST_NUMBERS
