"""Writes packs in the older layout, before int8 and int4 had groups of 32 inputs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch.nn import functional as F

from expert_store import ExpertLayout, PackedLayer, ParameterSpec, Weights, write_pack
from expert_store.keys import ExpertKey
from server.kernels.expert import transposed_names
from server.kernels.formats import channel_int8, group_int4
from server.model.checkpoint.folder_checkpoint import FolderCheckpoint
from server.model.checkpoint.read_config import read_config
from server.model.checkpoint.tensor_map import experts_modules, layer_numbers
from server.model.model_building import build_model
from server.model.opening.packing import pack_source

Tensors = dict[str, torch.Tensor]


def int8_matrix(name: str, matrix: torch.Tensor) -> Tensors:
    """Quantise a float32 matrix ``(out, in)`` to ``server.kernels.formats.channel_int8``."""
    scale = (matrix.abs().amax(1) / 127).bfloat16().float()
    codes = (matrix / torch.where(scale > 0, scale, 1.0).unsqueeze(1)).round().clamp(-127, 127).to(torch.int8)
    return {name: codes, name + channel_int8.SCALE: scale}


def int4_matrix(name: str, matrix: torch.Tensor, block: int) -> Tensors:
    """Quantise a float32 matrix ``(out, in)`` to ``server.kernels.formats.group_int4``, by plain rounding."""
    out_features, in_features = matrix.shape
    groups = F.pad(matrix, (0, -in_features % group_int4.GROUP), mode="replicate").unflatten(1, (-1, group_int4.GROUP))
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    scale = ((high - low) / group_int4.LARGEST).bfloat16().float()
    centre = (low + group_int4.MIDDLE * scale).bfloat16().float()
    steps = torch.where(scale > 0, scale, 1.0)
    codes = ((groups - centre) / steps).round().add(group_int4.MIDDLE).clamp(0, group_int4.LARGEST).to(torch.uint8)
    filled = F.pad(codes.flatten(1)[:, :in_features], (0, 0, 0, -out_features % block))
    first, second = filled.view(-1, 2, block // 2, in_features).unbind(1)
    scales = torch.cat((scale, centre), -1).transpose(0, 1).contiguous().bfloat16()
    return {name: (first | second << 4).mT.contiguous(), name + group_int4.SCALE: scales}


def pack_as_before(folder: Path, out: Path, weights: Literal["int8", "int4"], block: int = 64) -> Path:
    """Pack a checkpoint in the older layout.

    Args:
        block: of 4-bit matrices, 32 or 64.
    """
    model = build_model(read_config(folder), torch.bfloat16)
    source = pack_source(model, FolderCheckpoint(folder), folder.name, "bfloat16")
    modules = experts_modules(model)
    numbers = layer_numbers(list(modules))
    transposed = {numbers[name]: transposed_names(module) for name, module in modules.items()}

    def encode(key: ExpertKey) -> Weights:
        encoded: Weights = {}
        for name, value in source.encode(key).items():
            if value.ndim == 1:
                encoded[name] = value
                continue
            matrix = (value.mT if name in transposed[key.layer] else value).float()
            encoded |= int8_matrix(name, matrix) if weights == "int8" else int4_matrix(name, matrix, block)
        return encoded

    layers = {}
    for number, layer in source.layers.items():
        tensors = encode(ExpertKey(number, 0))
        specs = [ParameterSpec(name, value.dtype, tuple(value.shape)) for name, value in tensors.items()]
        layers[number] = PackedLayer(ExpertLayout(tuple(specs)), layer.num_experts)
    write_pack(replace(source, weights=weights, layers=layers, encode=encode), out, 1, lambda _: None)
    return out
