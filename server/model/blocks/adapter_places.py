"""NativeTarget: a linear layer in the place where the native kernels compute it, for adapters."""

from __future__ import annotations

from typing import NamedTuple

HEAD = -1  # in the place of a ``LoraPlace``


class NativeTarget(NamedTuple):
    """A linear layer in the place where the kernels compute it."""

    layer: int
    place: int  # ``LoraPlace``: one of the layer's mixer counted from ``MIXER``, one of its other parts, or ``HEAD``
    inputs: int
    outputs: int
    offset: int = 0  # of its outputs, for one of several that are computed together
    is_absorbed: bool = False  # attention applies it to the keys of all earlier tokens at once
