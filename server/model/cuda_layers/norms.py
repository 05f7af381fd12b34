"""Norms of the trunk that run in one launch on a CUDA device."""

from __future__ import annotations

import inspect
import logging
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from server.kernels.native.structures.layers import NormKind
from server.kernels.triton.available import runs_on
from server.model.blocks.norms import norm_of

if TYPE_CHECKING:
    from server.kernels.triton.rms_norm import PlainRmsNorm, RmsNorm

log = logging.getLogger(__name__)

SAMPLE = 64  # numbers of a row by which norms without weights are found


def fuse_norms(model: nn.Module, device: torch.device | None) -> int:
    """Let every RMS norm of a model run as one kernel; return how many there are.

    Args:
        device: where Triton's kernels run; None for nowhere.
    """
    if device is None or not runs_on(device):
        return 0
    count = 0
    dtype = next((parameter.dtype for parameter in model.parameters()), torch.float32)
    for module in model.modules():
        fused = _fuse(module, device, dtype)
        if fused is not None:
            module.forward = fused
            count += 1
    log.info("%d norms run as one kernel each", count)
    return count


def _fuse(module: nn.Module, device: torch.device, dtype: torch.dtype) -> RmsNorm | PlainRmsNorm | None:
    """Return the forward of an RMS norm in one launch; None if the module is none.

    Args:
        dtype: of rows, for one without weights.
    """
    from server.kernels.triton.rms_norm import MOST_NUMBERS, PlainRmsNorm, RmsNorm  # noqa: PLC0415  may be missing

    weight = getattr(module, "weight", None)
    if len(inspect.signature(module.forward).parameters) != 1:
        return None  # such as a norm with a gate
    if weight is None and next(module.parameters(), None) is None:
        norm = norm_of(module, SAMPLE)
        sample = torch.ones((1, SAMPLE), dtype=dtype, device=device)
    elif isinstance(weight, torch.Tensor) and weight.ndim == 1 and len(weight) <= MOST_NUMBERS:
        if weight.device.type != device.type:
            return None
        norm = norm_of(module)
        sample = torch.ones((1, len(weight)), dtype=weight.dtype, device=weight.device)
    else:
        return None
    if norm is None or norm.kind is not NormKind.RMS or norm.bias is not None or _dtype(module, sample) != sample.dtype:
        return None
    if weight is None:
        return PlainRmsNorm(norm.epsilon)
    return RmsNorm(norm.weight.to(weight.device), norm.epsilon)


def _dtype(module: Any, sample: torch.Tensor) -> torch.dtype:
    with torch.inference_mode():
        found: torch.dtype = module(sample).dtype
    return found
