"""Sentences for what a device refuses while a model is loaded."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from server.model.errors import ModelError

log = logging.getLogger(__name__)

LIBRARY_ERROR = re.compile(r"^(CUDA|HIP|cuDNN|cuBLAS)\b.* (error|failed)|^(CUDA|HIP|cuDNN|cuBLAS) error")


@contextmanager
def device_errors(model_type: str) -> Iterator[None]:
    """Raise a ModelError instead of the errors that torch raises for a device."""
    try:
        yield
    except Exception as error:
        if not is_device_error(error):
            raise
        log.debug("loading %s failed", model_type, exc_info=True)
        reason = str(error).strip().splitlines()[0].rstrip(".")
        advice = (
            "free memory on the device, or use --device cpu"
            if isinstance(error, torch.OutOfMemoryError)
            else "`greenroom doctor` shows what torch sees; or use --device cpu"
        )
        raise ModelError(f"the device failed while {model_type} was loaded: {reason}; {advice}") from error


def is_device_error(error: Exception) -> bool:
    """Return True if an error is a device's own, not one of what it was asked to compute."""
    if isinstance(error, torch.OutOfMemoryError | torch.AcceleratorError):
        return True
    return isinstance(error, RuntimeError) and LIBRARY_ERROR.search(str(error)) is not None
