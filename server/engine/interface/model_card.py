"""Facts about a loaded model, for lists of models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


def no_bytes() -> int:
    return 0


@dataclass(frozen=True)
class ModelCard:
    """Facts about a loaded model.

    Args:
        family: the name of its architecture in the format of its files, such as ``qwen3_moe`` or ``qwen3moe``.
        weight_bytes: bytes of all weights in the form in which they are in memory, those of paged experts included.
        host_bytes: returns the bytes of host memory that its weights and KV cache take now.
        device_bytes: returns the bytes of device memory that it takes now.
        format: of its files: ``safetensors``, ``gguf``, or ``greenroom`` for a pack.
        weights: the format of its weights, such as ``BF16`` or ``Q4_K_M``.
        num_parameters: of the whole model.
        licence: its name or text, if the files have one.
        metadata: further facts, by the names that llama.cpp has for them.
    """

    family: str = ""
    weight_bytes: int = 0
    host_bytes: Callable[[], int] = no_bytes
    device_bytes: Callable[[], int] = no_bytes
    format: str = ""
    weights: str = ""
    num_parameters: int = 0
    licence: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
