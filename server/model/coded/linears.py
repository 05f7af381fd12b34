"""Codes the linear layers of a model: the same weights to the bit, in fewer bytes (``coded_bfloat16``)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.core_model_loading import build_glob_alternation

from server.kernels.formats import coded_bfloat16
from server.kernels.native.library import Kernels
from server.model.architecture import head_of
from server.model.checkpoint.packed_trunk import linear_layers
from server.model.quantised.linear import NAME, QuantisedLinear

log = logging.getLogger(__name__)

CodedWeight = dict[str, torch.Tensor]  # the tensors of ``coded_bfloat16``, named by ``NAME``


def linears_to_code(model: PreTrainedModel, kernels: Kernels | None) -> Mapping[str, nn.Linear]:
    """Find the linear layers to code, by the names of their weights: the large ones in bfloat16, but not the head.

    The head multiplies rows in float32. Of more than four of them, its products take longer than its weights are read.

    Args:
        model: with or without weights.
        kernels: that run the layers; None if modules do. Nothing is coded unless they gain from it.
    """
    if kernels is None or not kernels.gains_from_codes:
        return {}
    head, plan = head_of(model), model._get_dtype_plan(torch.bfloat16)  # noqa: SLF001
    kept = build_glob_alternation([*plan])[0] if plan else None  # weights that stay in float32
    found = {
        name: linear
        for name, linear in linear_layers(model).items()
        if linear is not head
        and coded_bfloat16.takes_shape(linear.weight.dtype, linear.weight.shape)
        and (kept is None or kept.search(name) is None)
    }
    is_enough = sum(each.weight.nbytes for each in found.values()) >= coded_bfloat16.LEAST_BYTES
    return found if is_enough else {}


def code_weight(weight: torch.Tensor) -> CodedWeight | None:
    """Code the weight of a linear layer, on the CPU; returns None if too little would be saved."""
    tensors = coded_bfloat16.code(NAME, weight)
    coded_bytes = sum(tensor.nbytes for tensor in tensors.values())
    return tensors if coded_bytes <= coded_bfloat16.MOST_OF_PLAIN * weight.nbytes else None


def drop_weight(linear: Any, kernels: Kernels) -> None:
    """Make a ``QuantisedLinear`` without tensors of a linear layer.

    It stays the same object, so whatever refers to it does not notice.

    Args:
        linear: of ``linears_to_code``; its weight may be on the meta device.
    """
    dtype = linear.weight.dtype
    del linear.weight
    linear.__class__ = QuantisedLinear
    linear.format, linear._dtype, linear.kernels = coded_bfloat16, dtype, kernels  # noqa: SLF001
    linear._is_hf_initialized = True  # noqa: SLF001  keeps transformers from initialising it


def fill(linear: nn.Module, tensors: CodedWeight) -> None:
    """Give a layer its coded weight, after ``drop_weight``; transformers clears such buffers when it loads a model."""
    for name, tensor in tensors.items():
        linear.register_buffer(name, tensor, persistent=False)


def code_loaded(linears: Mapping[str, nn.Linear], kernels: Kernels) -> None:
    """Code those of the linear layers that were not coded while their weights were read, and count all in the log.

    These are the ones whose weights transformers makes of other tensors.

    Args:
        linears: with their weights.
    """
    for linear in linears.values():
        if type(linear) is nn.Linear and coded_bfloat16.takes(linear.weight):
            tensors = code_weight(linear.weight)
            if tensors is not None:
                drop_weight(linear, kernels)
                fill(linear, tensors)
    num_coded = sum(isinstance(each, QuantisedLinear) for each in linears.values())
    log.info("%d linear layers of the trunk take 12 bits a weight, without loss", num_coded)


def restore_plain(model: nn.Module) -> None:
    """Make plain layers again of all linear layers that are coded."""
    for module in model.modules():
        if isinstance(module, QuantisedLinear) and module.format is coded_bfloat16:
            _decode(module)


def _decode(linear: Any) -> None:
    weight = nn.Parameter(linear.weight, requires_grad=False)
    for name in (*dict(linear.named_buffers(recurse=False)), "format", "_dtype", "kernels", "_is_hf_initialized"):
        delattr(linear, name)
    linear.__class__ = nn.Linear
    linear.weight = weight
