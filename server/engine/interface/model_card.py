"""Facts about a loaded model, for lists of models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


def no_bytes() -> int:
    return 0


@dataclass(frozen=True)
class ModelCard:
    """Facts about a loaded model.

    Args:
        family: the model type of its config, such as ``qwen3_moe``.
        weight_bytes: bytes of all weights in the form in which they are in memory, those of paged experts included.
        host_bytes: returns the bytes of host memory that its weights and KV cache take now.
        device_bytes: returns the bytes of device memory that it takes now.

    """

    family: str = ""
    weight_bytes: int = 0
    host_bytes: Callable[[], int] = no_bytes
    device_bytes: Callable[[], int] = no_bytes
