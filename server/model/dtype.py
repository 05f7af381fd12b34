"""The dtype to compute in."""

from __future__ import annotations

import torch
from transformers import PreTrainedConfig

from server.model.native_layers.families import NATIVE_FAMILIES
from server.model.quantised.scheme import quantisation_of

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def compute_dtype(
    name: str, config: PreTrainedConfig, device: torch.device, *, has_kernels: bool = False
) -> torch.dtype:
    """Return the dtype of that name; ``auto`` is the checkpoint's, or float32 where bfloat16 is slow.

    On a processor without AVX-512 torch's product in bfloat16 takes ten times as long as one in float32. Native layers
    read bfloat16 faster than float32 on any processor (docs/log.md). Experts keep the checkpoint's dtype in their slots
    either way. The float16 of a quantised checkpoint is the dtype that its quantiser ran in; such a checkpoint is
    computed in bfloat16.

    Args:
        has_kernels: whether the decoder layers run natively if the model's family allows it.
    """
    if name != "auto":
        return DTYPES[name]
    stored = stored_dtype(config)
    if device.type == "cuda":
        return stored
    is_half = stored == torch.bfloat16 or (stored == torch.float16 and quantisation_of(config) is not None)
    is_native = has_kernels and config.model_type in NATIVE_FAMILIES
    is_fast = is_native or torch.ops.mkldnn._is_mkldnn_bf16_supported()  # noqa: SLF001
    return torch.bfloat16 if is_half and is_fast else torch.float32


def stored_dtype(config: PreTrainedConfig) -> torch.dtype:
    """Return the dtype of a checkpoint's weights by its config; float32 if the config names none."""
    stored: torch.dtype | None = getattr(config.get_text_config(), "dtype", None) or getattr(config, "dtype", None)
    return stored or torch.float32
