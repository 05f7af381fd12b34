"""Quantises tiny checkpoints in published formats, with reference weights by the library that defines the format."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
from compressed_tensors.entrypoints.convert.converters.autoawq import AutoAWQConverter
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.lifecycle.forward import dequantize
from compressed_tensors.quantization.utils import calculate_qparams
from safetensors.torch import load_file, save_file
from transformers.integrations.finegrained_fp8 import _dequantize_fp8_weight
from transformers.integrations.mxfp4 import _convert_moe_packed_tensors

Tensors = dict[str, torch.Tensor]
Quantise = Callable[[str, torch.Tensor], tuple[Tensors, torch.Tensor]]  # name, weight: stored tensors, their weight
GROUP = 8  # inputs; small enough for the tiniest models
BLOCK = (16, 16)
LAYERS = ("layers.", "blocks.")
KEPT = ("vision", "embed", "norm", ".gate.weight", "router", "per_layer", "bias", "conv")


@dataclass(frozen=True)
class Published:
    """One published format."""

    config: dict[str, Any]  # the quantization_config
    quantise: Quantise


def modelopt(quantised: Path) -> Path:
    """Turn a checkpoint of float8 with a scale per matrix into what ModelOpt exports; returns its folder."""
    path = quantised / "model.safetensors"
    tensors = load_file(path)
    for name in [name for name in tensors if name.endswith("_scale_inv")]:
        tensors[name.removesuffix("_inv")] = tensors.pop(name)
    for name in [name for name in tensors if name.endswith(".activation_scale")]:
        tensors[name.replace(".activation_scale", ".input_scale")] = tensors.pop(name)
    save_file(tensors, path, {"format": "pt"})
    config = json.loads((quantised / "config.json").read_text())
    del config["quantization_config"]
    (quantised / "config.json").write_text(json.dumps(config))
    settings = {"quant_algo": "FP8", "kv_cache_quant_algo": None, "exclude_modules": ["lm_head"]}
    whole = {"producer": {"name": "modelopt", "version": "0.33.0"}, "quantization": settings}
    (quantised / "hf_quant_config.json").write_text(json.dumps(whole))
    return quantised


def publish(plain: Path, out: Path, published: Published) -> tuple[Path, Path]:
    """Quantise a plain checkpoint; returns the quantised folder, and one with the same weights dequantised."""
    quantised, reference = out / "quantised", out / "reference"
    for folder in (quantised, reference):
        shutil.copytree(plain, folder)
    stored: Tensors = {}
    weights: Tensors = {}
    for name, tensor in load_file(plain / "model.safetensors").items():
        is_weight = name.endswith(".weight") or "experts" in name
        is_matrix = is_weight and tensor.ndim > 1 and any(part in name for part in LAYERS)
        is_matrix &= not any(part in name for part in KEPT)
        parts, weight = published.quantise(name, tensor) if is_matrix else ({name: tensor}, tensor)
        stored |= {part: value.contiguous() for part, value in parts.items()}
        weights[name] = weight.to(tensor.dtype).contiguous()
    save_file(stored, quantised / "model.safetensors", {"format": "pt"})
    save_file(weights, reference / "model.safetensors", {"format": "pt"})
    edit_config(quantised, quantization_config=published.config)
    return quantised, reference


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def mxfp4() -> Published:
    """MXFP4: random codes and scales; reference weights by transformers."""

    def quantise(name: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        if "experts" not in name:
            return {name: weight}, weight
        experts, in_features, out_features = weight.shape
        shape = (experts, out_features, in_features // 32)
        blocks = torch.randint(0, 256, (*shape, 16), dtype=torch.uint8)
        scales = torch.randint(123, 126, shape, dtype=torch.uint8)
        dequantised = _convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
        return {f"{name}_blocks": blocks, f"{name}_scales": scales}, dequantised

    return Published({"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]}, quantise)


def fp8(
    block: tuple[int, int] | None = BLOCK, scale_dtype: torch.dtype = torch.float32, method: str = "fp8"
) -> Published:
    """Float8: scales per block, the last of which may be smaller, or per matrix; reference weights by transformers."""

    def quantise(name: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        rows, columns = block or weight.shape[-2:]
        grid = (-(-weight.shape[-2] // rows), -(-weight.shape[-1] // columns))
        padded = weight.new_zeros((*weight.shape[:-2], grid[0] * rows, grid[1] * columns))
        padded[..., : weight.shape[-2], : weight.shape[-1]] = weight
        tiles = padded.unflatten(-1, (grid[1], columns)).unflatten(-3, (grid[0], rows))  # (..., gr, rows, gc, columns)
        scale = tiles.abs().amax((-1, -3)).clamp_min(1e-6) / 448
        if scale_dtype != torch.float32:
            scale = scale.log2().ceil().exp2()
        codes = tiles / scale[..., :, None, :, None]
        codes = codes.flatten(-4, -3).flatten(-2)[..., : weight.shape[-2], : weight.shape[-1]].to(torch.float8_e4m3fn)
        dequantised = _dequantize_fp8_weight(codes, scale, [rows, columns], torch.float32)
        kept = scale.to(torch.float8_e8m0fnu) if scale_dtype != torch.float32 else scale
        kept = kept.view(torch.uint8) if scale_dtype == torch.uint8 else kept
        parts = {name: codes, f"{name}_scale_inv": kept if block else kept.squeeze()}
        if block is None:
            parts[f"{name.removesuffix('.weight')}.activation_scale"] = torch.tensor(1.0)
        return parts, dequantised

    config = {
        "quant_method": method,
        "weight_block_size": block,
        "activation_scheme": "static" if block is None else "dynamic",
    }
    return Published(config, quantise)


def compressed_tensors(layout: str, scale_dtype: torch.dtype = torch.bfloat16, **weights: Any) -> Published:
    """Quantised and dequantised by the compressed-tensors library."""
    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**weights), format=layout)
    compressor = BaseCompressor.get_value_from_registry(layout)
    args = scheme.weights

    def quantise(name: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        module, state = name.removesuffix(".weight"), {"weight": weight}
        scale, zero = _parameters(weight, args)
        if args.strategy == "tensor_group":
            state["weight_global_scale"] = torch.tensor([100.0])
            scale = (scale * 100).to(torch.float8_e4m3fn).float()
        state |= {"weight_scale": scale.to(scale_dtype), "weight_zero_point": zero}
        stored = compressor.compress(state, scheme)
        if args.strategy == "tensor_group":  # the compressor would return bfloat16
            codes = unpack_fp4_from_uint8(stored["weight_packed"], *weight.shape, dtype=torch.float32)
            scale = stored["weight_scale"].float()
            weight = dequantize(codes, scale, args=args, global_scale=stored["weight_global_scale"])
        else:
            scale = stored["weight_scale"]
            exact = {"weight_scale": scale.float() if scale.is_floating_point() else scale}
            weight = compressor.decompress(stored | exact, scheme)["weight"]
        return {f"{module}.{part}": value for part, value in stored.items()}, weight.float()

    config = {
        "quant_method": "compressed-tensors",
        "format": layout,
        "quantization_status": "compressed",
        "config_groups": {"group_0": json.loads(scheme.model_dump_json())},
        "ignore": ["lm_head"],
    }
    return Published(config, quantise)


def _parameters(weight: torch.Tensor, args: QuantizationArgs) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales and zero points from the extremes of each group."""
    match args.strategy:
        case "block":
            rows, columns = args.block_structure
            grid = (-(-weight.shape[0] // rows), -(-weight.shape[1] // columns))
            padded = weight.new_zeros((grid[0] * rows, grid[1] * columns))
            padded[: weight.shape[0], : weight.shape[1]] = weight
            values = padded.view(grid[0], rows, grid[1], columns).transpose(1, 2).flatten(2)
        case "tensor":
            values = weight.view(1, -1)
        case "channel":
            values = weight.unsqueeze(1)
        case _:
            values = weight.unflatten(1, (-1, args.group_size))
    return calculate_qparams(values.amin(-1), values.amax(-1), args)


def bitsandbytes() -> Published:
    """NF4 with double quantisation, whose blocks end within rows; an independent implementation of the definition."""
    quantiles = torch.distributions.Normal(0.0, 1.0).icdf(torch.linspace(0.05, 0.95, 16))
    table, block, nested = quantiles / quantiles.max(), 64, 256
    nested_table = torch.linspace(-1, 1, 256)

    def quantise(name: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        flat = torch.nn.functional.pad(weight.flatten(), (0, -weight.numel() % block)).view(-1, block)
        largest = flat.abs().amax(1)
        offset = float(largest.mean())
        rest = torch.nn.functional.pad(largest - offset, (0, -len(largest) % nested)).view(-1, nested)
        factors = rest.abs().amax(1)
        scale_codes = (rest / factors.unsqueeze(1) - nested_table.view(-1, 1, 1)).abs().argmin(0)
        scales = (nested_table[scale_codes] * factors.unsqueeze(1)).flatten()[: len(largest)] + offset
        codes = (flat / scales.unsqueeze(1) - table.view(-1, 1, 1)).abs().argmin(0).to(torch.uint8)
        dequantised = (table[codes.long()] * scales.unsqueeze(1)).flatten()[: weight.numel()].view(weight.shape)
        pairs = codes.flatten()[: weight.numel()].view(-1, 2)
        state = {"quant_type": "nf4", "blocksize": block, "dtype": "float32", "shape": list(weight.shape)}
        state |= {"nested_blocksize": nested, "nested_dtype": "float32", "nested_offset": offset}
        parts = {
            "": pairs[:, :1] << 4 | pairs[:, 1:],
            ".absmax": scale_codes.flatten()[: len(largest)].to(torch.uint8),
            ".quant_map": table,
            ".nested_absmax": factors,
            ".nested_quant_map": nested_table,
            ".quant_state.bitsandbytes__nf4": torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8),
        }
        return {name + suffix: value.clone() for suffix, value in parts.items()}, dequantised

    return Published({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, quantise)


def awq() -> Published:
    """AutoAWQ's GEMM format; reference weights by the compressed-tensors library, which converts it."""
    config = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"}
    converter = AutoAWQConverter.from_autoawq_config(config)
    compressor = BaseCompressor.get_value_from_registry("pack-quantized")
    (scheme,) = converter.update_config(None).config_groups.values()

    def quantise(name: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        module = name.removesuffix(".weight")
        codes, scale, zero = _asymmetric(weight, 4)
        stored = {"qweight": _pack_awq(codes.T), "qzeros": _pack_awq(zero.T), "scales": scale.T.contiguous()}
        stored = {f"{module}.{part}": value for part, value in stored.items()}
        converted = converter.process(dict(stored))
        state = {part.removeprefix(f"{module}."): value for part, value in converted.items()}
        state["weight_scale"] = state["weight_scale"].float()
        return stored, compressor.decompress(state, scheme)["weight"]

    return Published(config, quantise)


def gptq(bits: int = 4, layout: str = "gptq", *, has_order: bool = False) -> Published:
    """GPTQ's first or second format; reference weights from its definition, number by number."""

    def quantise(name: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        module, in_features = name.removesuffix(".weight"), weight.shape[1]
        groups = torch.arange(in_features) // GROUP
        if has_order:
            groups = groups[torch.randperm(in_features)]
        columns = torch.cat([(groups == group).nonzero().squeeze(1) for group in range(in_features // GROUP)])
        codes, scale, zero = _asymmetric(weight[:, columns], bits)
        codes = torch.empty_like(codes).index_copy_(1, columns, codes)
        kept = (zero - (1 if layout == "gptq" else 0)) % (1 << bits)
        stored = {
            "qweight": _pack(codes, bits).T,
            "qzeros": _pack(kept.T, bits),
            "scales": scale.T.contiguous(),
            "g_idx": groups.int(),
        }
        dequantised = torch.empty_like(weight)
        for column in range(in_features):
            group = int(groups[column])
            dequantised[:, column] = (codes[:, column] - zero[:, group]) * scale[:, group].float()
        return {f"{module}.{part}": value for part, value in stored.items()}, dequantised

    config = {"quant_method": "gptq", "bits": bits, "group_size": GROUP, "desc_act": has_order, "sym": False}
    return Published(config | {"checkpoint_format": layout}, quantise)


def _asymmetric(weight: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes int64 ``(out, in)``, scales float16 and zeros int64 ``(out, groups)``."""
    groups, most = weight.unflatten(1, (-1, GROUP)), (1 << bits) - 1
    low, high = groups.amin(-1).clamp_max(0), groups.amax(-1).clamp_min(0)
    scale = ((high - low) / most).clamp_min(1e-4).half()
    zero = (-low / scale.float()).round().clamp(0, most).long()
    zero[0, 0], zero[-1, 0] = 0, most
    codes = (groups / scale.float().unsqueeze(-1)).round().long() + zero.unsqueeze(-1)
    return codes.clamp(0, most).flatten(1), scale, zero


def _pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Pack consecutive codes of a row into int32, from the lowest bits: ``(rows, n)`` to ``(rows, n * bits / 32)``."""
    per_integer = 32 // bits
    integers = torch.zeros((codes.shape[0], codes.shape[1] // per_integer), dtype=torch.int64)
    for place in range(per_integer):
        integers |= codes[:, place::per_integer] << place * bits
    return (integers - (integers >> 31 << 32)).int()


def _pack_awq(codes: torch.Tensor) -> torch.Tensor:
    """``(rows, out)`` to int32 ``(rows, out / 8)``, each eight of a row in AWQ's order."""
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    return _pack(codes.unflatten(1, (-1, 8))[..., order].flatten(1), 4)
