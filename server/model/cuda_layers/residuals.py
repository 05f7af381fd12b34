"""Layers whose residual sums are computed by the norms that follow, in the same launch."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from server.kernels.residual_stream import ResidualStream
from server.kernels.triton.available import runs_on

log = logging.getLogger(__name__)

ROWS = "hidden_states"  # the first argument of a layer


def fuse_residuals(model: nn.Module, device: torch.device | None) -> int:
    """Let norms that run as one kernel also add the residual before them; return how many layers have such.

    Args:
        model: whose norms were fused (``fuse_norms``).
        device: where Triton's kernels run; None for nowhere.
    """
    if device is None or not runs_on(device):
        return 0
    from server.kernels.triton.rms_norm import RmsNorm  # noqa: PLC0415  Triton may not be installed

    layers = [layer for each in model.modules() if isinstance(each, nn.ModuleList) for layer in each]
    count = 0
    for layer in layers:
        has_norm = any(isinstance(child.forward, RmsNorm) for child in layer.children())
        if has_norm and next(iter(inspect.signature(layer.forward).parameters), None) == ROWS:
            layer.forward = _with_stream(layer.forward)
            count += 1
    log.info("%d layers add residuals where they norm them", count)
    return count


def _with_stream(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Return the forward of a layer whose rows are a ``ResidualStream``."""

    @functools.wraps(forward)
    def run(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        is_stream = isinstance(hidden_states, ResidualStream)
        return forward(hidden_states if is_stream else ResidualStream(hidden_states), *args, **kwargs)

    return run
