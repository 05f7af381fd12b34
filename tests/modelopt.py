"""Quantises tiny checkpoints as NVIDIA's Model Optimizer does; reference weights by the definition, in float32."""

from __future__ import annotations

from typing import Any

import torch

from tests.quantise import Published, Tensors

NUMBERS = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])  # of E2M1, whose fourth bit is the sign
GROUP = 16
MOST_E2M1, MOST_E4M3, LEAST_E4M3 = 6.0, 448.0, 2.0**-9
CONFIG = {
    "quant_method": "modelopt",
    "producer": {"name": "modelopt", "version": "0.44.0"},
    "ignore": ["lm_head", "model.visual*"],
}
IN_GROUPS = {"num_bits": 4, "type": "float", "group_size": GROUP, "dynamic": False}


def nvfp4(*, is_transposed: bool = False) -> Published:
    """NVFP4 in all layers of the text.

    Args:
        is_transposed: whether fused experts are ``(experts, in, out)``, as those of Llama 4 and gpt-oss.
    """

    def quantise(name: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        if "visual" in name:
            return {name: weight}, weight
        if not is_transposed or weight.ndim < 3:
            return quantise_nvfp4(name, weight)
        stored, reference = quantise_nvfp4(name, weight.mT)
        return {part: value.mT if value.ndim > 1 else value for part, value in stored.items()}, reference.mT

    groups = {"group_0": {"weights": IN_GROUPS, "input_activations": IN_GROUPS, "targets": ["Linear"]}}
    return Published(CONFIG | {"quant_algo": "NVFP4", "config_groups": groups}, quantise)


def mixed(*, names_layers: bool = True) -> Published:
    """NVFP4 experts, and the rest in FP8.

    Args:
        names_layers: whether the config lists the layers, besides groups of them.
    """

    def quantise(name: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        return quantise_nvfp4(name, weight) if "experts" in name else quantise_fp8(name, weight)

    attention, experts = "model.layers.0.self_attn.o_proj", "model.layers.0.mlp.experts"
    layers = {attention: {"quant_algo": "FP8"}, experts: {"quant_algo": "W4A16_NVFP4", "group_size": GROUP}}
    groups: dict[str, Any] = {
        "group_0": {"weights": {"num_bits": 8, "type": "float", "dynamic": False}, "targets": [attention]},
        "group_1": {"weights": IN_GROUPS, "targets": [experts]},
    }
    named = {"quantized_layers": layers} if names_layers else {}
    return Published(CONFIG | named | {"quant_algo": "MIXED_PRECISION", "config_groups": groups}, quantise)


def quantise_nvfp4(name: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    """Quantise ``(out, in)`` or ``(experts, out, in)``; returns the stored tensors, and the weights that they mean.

    A linear layer of all experts has a factor for each, and fused experts have one together.
    """
    is_module = name.endswith(".weight")
    groups = weight.unflatten(-1, (-1, GROUP))
    dims = tuple(range(weight.ndim - 2, weight.ndim)) if is_module else tuple(range(weight.ndim))
    factor = weight.abs().amax(dims) / (MOST_E2M1 * MOST_E4M3)
    of_each = factor.view(*factor.shape, *[1] * (weight.ndim - factor.ndim))
    scale = groups.abs().amax(-1) / (MOST_E2M1 * of_each)
    scale = scale.clamp(LEAST_E4M3, MOST_E4M3).to(torch.float8_e4m3fn)
    steps = (scale.float() * of_each).unsqueeze(-1)
    magnitudes = (groups / steps).abs()
    codes = (magnitudes.unsqueeze(-1) - NUMBERS).abs().argmin(-1)
    signed = (codes + 8 * (groups < 0)).flatten(-2).to(torch.uint8)
    packed = signed[..., 0::2] | signed[..., 1::2] << 4
    meant = NUMBERS[codes] * torch.where(groups < 0, -1.0, 1.0) * steps
    prefix = name.removesuffix(".weight") + ("." if is_module else "_")
    stored = {name: packed, f"{prefix}weight_scale": scale, f"{prefix}weight_scale_2": factor}
    return stored | _of_activations(name, prefix, factor), meant.flatten(-2)


def quantise_fp8(name: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    scale = weight.abs().amax() / MOST_E4M3
    codes, prefix = (weight / scale).to(torch.float8_e4m3fn), name.removesuffix("weight")
    return {name: codes, f"{prefix}weight_scale": scale} | _of_activations(name, prefix, scale), codes.float() * scale


def _of_activations(name: str, prefix: str, like: torch.Tensor) -> Tensors:
    """Scales of activations and of the KV cache, which change nothing."""
    kv = {f"{prefix}{part}_scale": torch.tensor(0.5) for part in "kv" if f".{part}_proj." in name}
    return {f"{prefix}input_scale": torch.full_like(like, 0.25), **kv}
