"""NativeTarget: a linear layer in the place where the native kernels compute it, for adapters."""

from __future__ import annotations

from typing import NamedTuple

END = -1  # of a model: the last entry of an adapter's layers


class NativeTarget(NamedTuple):
    """A linear layer in the place where the kernels compute it."""

    layer: int  # or ``END``
    place: int  # ``LoraPlace``: one of the layer's mixer counted from ``MIXER``, or one of its other parts
    inputs: int
    outputs: int
    offset: int = 0  # of its outputs, for one of several that are computed together
    is_absorbed: bool = False  # attention applies it to the keys of all earlier tokens at once
    input_scale: float = 1.0  # its module takes the kernels' inputs times this
