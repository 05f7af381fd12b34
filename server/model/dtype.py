"""The dtype to compute in."""

from __future__ import annotations

import torch
from transformers import PreTrainedConfig

from server.device import is_gpu
from server.model.quantised.scheme import quantisation_of

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def compute_dtype(name: str, config: PreTrainedConfig, device: torch.device, *, is_native: bool = False) -> torch.dtype:
    """Return the dtype of that name; ``auto`` is the checkpoint's, or float32 where bfloat16 is slow.

    On a processor without AVX-512 torch's product in bfloat16 takes ten times as long as one in float32. Native layers
    read it as fast or faster. Experts keep the checkpoint's dtype in their slots either way. Measured in
    benchmarks/results/2026-11-27-avx2-zen3/native-layers-in-bfloat16-on-a-processor-without-avx-512.json.

    Args:
        name: of the setting.
        config: of the model.
        device: to compute on.
        is_native: whether all decoder layers run natively in bfloat16.
    """
    if name != "auto":
        return DTYPES[name]
    if is_gpu(device):
        return stored_dtype(config)
    is_fast = is_native or torch.ops.mkldnn._is_mkldnn_bf16_supported()  # noqa: SLF001
    return torch.bfloat16 if suits_bfloat16(config) and is_fast else torch.float32


def suits_bfloat16(config: PreTrainedConfig) -> bool:
    """Return True if a checkpoint is computed in bfloat16 where that is fast.

    The float16 of a quantised checkpoint is the dtype that its quantiser ran in, so that bfloat16 suits it, too.
    """
    stored = stored_dtype(config)
    return stored == torch.bfloat16 or (stored == torch.float16 and quantisation_of(config) is not None)


def stored_dtype(config: PreTrainedConfig) -> torch.dtype:
    """Return the dtype of a checkpoint's weights by its config; float32 if the config names none."""
    stored: torch.dtype | None = getattr(config.get_text_config(), "dtype", None) or getattr(config, "dtype", None)
    return stored or torch.float32
