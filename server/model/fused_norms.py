"""Norms of the trunk that run in one launch on a CUDA device."""

from __future__ import annotations

import inspect
import logging
from typing import Any

import torch
from torch import nn

from server.kernels.native.structures.layers import NormKind
from server.kernels.triton.available import runs_on
from server.model.blocks.norms import norm_of

log = logging.getLogger(__name__)


def fuse_norms(model: nn.Module, device: torch.device | None) -> int:
    """Let every RMS norm of a model run as one kernel; return how many there are.

    Args:
        device: where Triton's kernels run; None for nowhere.
    """
    if device is None or not runs_on(device):
        return 0
    from server.kernels.triton.rms_norm import MOST_NUMBERS, RmsNorm  # noqa: PLC0415  Triton may not be installed

    count = 0
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if not isinstance(weight, torch.Tensor) or weight.ndim != 1 or len(weight) > MOST_NUMBERS:
            continue
        if weight.device.type != device.type or len(inspect.signature(module.forward).parameters) != 1:
            continue  # such as a norm with a gate
        norm = norm_of(module)
        sample = torch.ones((1, len(weight)), dtype=weight.dtype, device=weight.device)
        if (
            norm is None
            or norm.kind is not NormKind.RMS
            or norm.bias is not None
            or _dtype(module, sample) != sample.dtype
        ):
            continue
        module.forward = RmsNorm(norm.weight.to(weight.device), norm.epsilon)
        count += 1
    log.info("%d norms run as one kernel each", count)
    return count


def _dtype(module: Any, sample: torch.Tensor) -> torch.dtype:
    with torch.inference_mode():
        found: torch.dtype = module(sample).dtype
    return found
