"""Selects the backend that runs a layer of experts."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache

from server.kernels.backend import ExpertBackend, Layout
from server.kernels.compute_pool import ComputePool
from server.kernels.expert import ExpertsModule, scales_input
from server.kernels.native.backend import NativeBackend, describe_experts, expert_shape
from server.kernels.torch_backend import TorchBackend
from server.kernels.triton.available import missing
from server.kernels.triton.launch import unsupported

log = logging.getLogger(__name__)

# Returns the backend of a layer; a reason if the backend can't run the layer; None if it is not in use at all.
Offer = Callable[[ExpertsModule, Layout, ComputePool], ExpertBackend | str | None]


def native_backend(module: ExpertsModule, layout: Layout, pool: ComputePool) -> ExpertBackend | str | None:
    if pool.kernels is None:
        return None
    shape = expert_shape(module, layout)
    if isinstance(shape, str):
        return f"the native kernels do not support it: {shape}"
    return NativeBackend(pool.kernels, shape, scales_input=scales_input(module))


def triton_backend(module: ExpertsModule, layout: Layout, pool: ComputePool) -> ExpertBackend | str | None:
    if pool.triton_device is None:
        return None
    reason = missing(pool.triton_device)
    if reason is not None:
        return reason
    shape = describe_experts(module, layout)
    if isinstance(shape, str):
        return f"the Triton kernels do not support it: {shape}"
    reason = unsupported(shape)
    if reason is not None:
        return reason
    from server.kernels.triton.backend import TritonBackend  # noqa: PLC0415  Triton may not be installed

    return TritonBackend(
        shape, module.num_experts, TorchBackend(pool, module, layout), scales_input=scales_input(module)
    )


OFFERS: tuple[Offer, ...] = (native_backend, triton_backend)  # the fastest first; torch runs what none of them can


def select_backend(module: ExpertsModule, layout: Layout, pool: ComputePool) -> ExpertBackend:
    """Return the fastest backend that can run a layer's experts.

    Args:
        module: the layer's experts module from transformers.
        layout: names, dtypes and shapes of an expert's tensors in a slot.
        pool: the compute threads.
    """
    for offer in OFFERS:
        found = offer(module, layout, pool)
        if isinstance(found, str):
            _log_once(f"{type(module).__name__} runs in torch, because {found}")
        elif found is not None:
            return found
    return TorchBackend(pool, module, layout)


@cache
def _log_once(reason: str) -> None:
    """Log a reason once, not for every layer."""
    log.info(reason)
