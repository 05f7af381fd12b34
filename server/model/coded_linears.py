"""Codes the linear layers of a loaded model: the same weights to the bit, in fewer bytes (``coded_bfloat16``)."""

from __future__ import annotations

import logging
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from server.kernels.formats import coded_bfloat16
from server.kernels.native.library import Kernels
from server.model.architecture import head_of
from server.model.checkpoint.packed_trunk import linear_layers
from server.model.quantised.linear import NAME, QuantisedLinear

log = logging.getLogger(__name__)


class CodedLinears:
    """Codes the large linear layers in bfloat16, but not the head.

    The head multiplies rows in float32. Of more than four of them, its products take longer than its weights are read.
    Modules stay the same objects, so whatever refers to one does not notice.

    Args:
        model: with its weights, on the CPU.
        kernels: that run the layers; None if modules do. Nothing is coded unless they gain from it.
    """

    def __init__(self, model: PreTrainedModel, kernels: Kernels | None):
        self._linears: list[nn.Linear] = []
        if kernels is None or not kernels.gains_from_codes:
            return
        head, layers = head_of(model), linear_layers(model).values()
        found = [each for each in layers if each is not head and coded_bfloat16.takes(each.weight)]
        if sum(each.weight.nbytes for each in found) < coded_bfloat16.LEAST_BYTES:
            return
        self._linears = [linear for linear in found if _code(linear, kernels)]
        log.info("%d linear layers of the trunk take 12 bits a weight, without loss", len(self._linears))

    def restore(self) -> None:
        """Make plain layers of them again."""
        for linear in self._linears:
            _decode(linear)


def _code(linear: Any, kernels: Kernels) -> bool:
    """Make a ``QuantisedLinear`` of a linear layer; returns False if too little would be saved."""
    weight = linear.weight
    tensors = coded_bfloat16.code(NAME, weight)
    if sum(tensor.nbytes for tensor in tensors.values()) > coded_bfloat16.MOST_OF_PLAIN * weight.nbytes:
        return False
    del linear.weight
    linear.__class__ = QuantisedLinear
    linear.format, linear._dtype, linear.kernels = coded_bfloat16, weight.dtype, kernels  # noqa: SLF001
    for name, tensor in tensors.items():
        linear.register_buffer(name, tensor, persistent=False)
    return True


def _decode(linear: Any) -> None:
    """Make a linear layer of what ``_code`` made."""
    weight = nn.Parameter(linear.weight, requires_grad=False)
    for name in (*dict(linear.named_buffers(recurse=False)), "format", "_dtype", "kernels"):
        delattr(linear, name)
    linear.__class__ = nn.Linear
    linear.weight = weight
