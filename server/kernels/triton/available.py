"""Finds out whether Triton's kernels run on a device."""

from __future__ import annotations

import ctypes
import logging
from functools import cache

import torch

log = logging.getLogger(__name__)

DRIVER = "libcuda.so.1"
TOKENS, TOP_K, HIDDEN = 3, 2, 40  # of the trial


def has_driver() -> bool:
    """Return True if NVIDIA's driver is there; a build of torch for CUDA does not bring it."""
    try:
        ctypes.CDLL(DRIVER)
    except OSError:
        return False
    return True


def runs_on(device: torch.device | None) -> bool:
    """Return True if Triton's kernels run on a device; None for no use of Triton."""
    return device is not None and missing(device) is None


@cache
def missing(device: torch.device) -> str | None:
    """Return why Triton's kernels can't run on a device; None if two small ones have run there, and were right."""
    if torch.version.hip is not None:
        return "the Triton kernels were never tried on ROCm"
    if not has_driver():
        return f"there is no driver of NVIDIA ({DRIVER})"
    try:
        is_right = _adds(device) and _attends(device)
    except ImportError:
        return "Triton is not installed; pip install 'greenroom[cuda]'"
    except Exception as error:  # a compiler and a driver raise many kinds
        log.warning("Triton kernels do not run on %s, so torch does their work, slower", device, exc_info=error)
        return f"a Triton kernel failed: {' '.join(str(error).split())[:200]}"
    return None if is_right else "a Triton kernel gave a wrong result"


def _adds(device: torch.device) -> bool:
    """Return True if the kernel that adds choices is right on a few numbers."""
    from server.kernels.triton import experts  # noqa: PLC0415  Triton may not be installed

    products = torch.arange(TOKENS * TOP_K * HIDDEN, dtype=torch.float32, device=device).view(TOKENS, TOP_K, HIDDEN)
    weights = torch.full((TOKENS, TOP_K), 0.5, device=device)
    chosen = torch.zeros(TOKENS * TOP_K, dtype=torch.int32, device=device)
    output = torch.zeros((TOKENS, HIDDEN), device=device)
    options = {"SCALES_INPUT": False, "BLOCK_N": 64}
    experts.add_choices[(TOKENS, 1)](products, chosen, 1, weights, output, TOP_K, HIDDEN, **options)
    return torch.equal(output, products.sum(1) * 0.5)


def _attends(device: torch.device) -> bool:
    """Return True if a token that sees itself alone has its own value as the result of attention."""
    from server.kernels.triton.decode_attention import DecodeRow, PagedKeys, PagedStep  # noqa: PLC0415  as above

    cache = torch.zeros((1, 1, HIDDEN), dtype=torch.float16, device=device)
    row = torch.arange(HIDDEN, dtype=torch.float16, device=device).view(1, 1, HIDDEN)
    output = torch.zeros_like(row)
    step, paged = PagedStep([0], [DecodeRow(0, 0, 1, [0])], 1, device), PagedKeys(cache, cache, HIDDEN, HIDDEN, True)
    step.write(row, row, paged)
    step.attend(row, paged, output, scaling=0.1, softcap=None, sinks=None)
    return torch.equal(output, row)
