"""GGUF files of published models, whose bytes are made when they are read."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter

from expert_store import FileName, LocalFolder
from server.model.checkpoint.folder_checkpoint import FolderCheckpoint
from server.model.checkpoint.gguf import conversions
from server.model.checkpoint.gguf.architecture import Architecture
from server.model.checkpoint.gguf.places import Place
from server.model.families.registry import gguf_architectures
from server.model.model_building import build_model
from server.model.opening.gguf_checkpoint import GgufCheckpoint
from tests.full_width.gguf_types import IN_SMALL_BLOCKS, INPUTS, matrix_bytes, row_bytes
from tests.full_width.made_files import MadeFile, MadeFolder, MadeTensor
from tests.full_width.trained_like import trained_like_weights

ALIGNMENT = 32
LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")
IN_FLOAT32 = re.compile(r"ffn_gate_inp|conv|norm|ssm_a$|ssm_d$|\.bias$|\.scale$|sinks|output_scale")
MORE_BITS = re.compile(r"attn_v|ffn_down")
MIXES = {  # types of: most matrices, those of MORE_BITS in every second layer, the head, experts
    "Q4_K_M": ("Q4_K", "Q6_K", "Q6_K", None),
    "IQ4_XS": ("IQ4_XS", "Q5_K", "Q6_K", None),
    "MXFP4": ("Q8_0", "Q8_0", "Q8_0", "MXFP4"),
}
Shape = tuple[int, ...]


class Writer:
    """Collects the tensors of a file.

    Args:
        config: of the model.
        mix: see ``MIXES``.
    """

    def __init__(self, config: Any, architecture: str, mix: str):
        self._config, self._architecture, self._mix = config, gguf_architectures()[architecture], MIXES[mix]
        model = build_model(config, torch.bfloat16)
        config.architectures = [type(model).__name__]
        self._scale = getattr(model.get_input_embeddings(), "scalar_embed_scale", 1.0)
        self._shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
        self._is_transposed = config.model_type in {"gpt_oss", "llama4_text"}  # its experts are (in, out)
        if config.tie_word_embeddings:
            self._shapes.pop("lm_head.weight", None)

    def tensors(self) -> Iterator[tuple[MadeTensor, Shape, str]]:
        """Yield each tensor with its shape and type."""
        for parameter, shape in self._shapes.items():
            match = LAYER.fullmatch(parameter)
            prefix, name = (f"blk.{match[1]}.", match[2]) if match else ("", parameter)
            if match and name.startswith(f"{self._architecture.experts}."):
                stacks = self._stacks(name.rpartition(".")[2], shape)
            else:
                stacks = self._parts(*_place(self._architecture, name, in_layer=match is not None), shape)
            for leaf, own in stacks:
                yield self._tensor(prefix + leaf, parameter, own, int(match[1]) if match else 0)

    def _stacks(self, name: str, shape: Shape) -> Iterator[tuple[str, Shape]]:
        kind = "bias" if name.endswith("_bias") else "weight"
        if kind == "weight" and self._is_transposed:
            shape = (shape[0], shape[2], shape[1])
        stem = name.removesuffix("_bias").removesuffix("_proj")
        if stem == "gate_up" and self._config.model_type != "gemma4_text":
            half = (shape[0], shape[1] // 2, *shape[2:])
            yield f"ffn_gate_exps.{kind}", half
            yield f"ffn_up_exps.{kind}", half
        else:
            yield f"ffn_{stem}_exps.{kind}", shape

    def _parts(self, leaf: str, place: Place, shape: Shape) -> Iterator[tuple[str, Shape]]:
        config = self._config
        if place.convert is conversions.delta_net_inputs:
            gates = config.linear_num_value_heads * config.linear_value_head_dim
            yield leaf, (shape[0] - gates, shape[1])
            yield place.others[0], (gates, shape[1])
        elif place.convert is conversions.expansion_of_latents:
            heads, latents = config.num_attention_heads, config.kv_lora_rank
            yield leaf, (heads, latents, config.qk_nope_head_dim)
            yield place.others[0], (heads, config.v_head_dim, latents)
        else:
            yield leaf, (shape[0], shape[2]) if "conv" in leaf and len(shape) == 3 else shape

    def _tensor(self, name: str, parameter: str, shape: Shape, layer: int) -> tuple[MadeTensor, Shape, str]:
        units = shape[0] if len(shape) == 3 else 1
        own = shape[1:] if units > 1 else shape
        kind = self._type_of(name, shape, layer)
        if kind == "F32":

            def plain(_: int) -> Any:
                found = trained_like_weights(parameter, shape, self._config.hidden_size, self._scale)
                found = -found.exp() if name.endswith("ssm_a") else found
                return found.contiguous().flatten().view(torch.uint8).numpy()

            return MadeTensor(name, kind, shape, 4 * math.prod(shape), plain), shape, kind

        def made(unit: int) -> Any:
            return matrix_bytes(kind, f"{name} {unit}", own[0], own[1])

        nbytes = math.prod(shape[:-1]) * row_bytes(kind, shape[-1])
        return MadeTensor(name, kind, shape, nbytes, made, units), shape, kind

    def _type_of(self, name: str, shape: Shape, layer: int) -> str:
        usual, more, head, experts = self._mix
        if len(shape) < 2 or IN_FLOAT32.search(name) or name == "token_embd.weight":
            return "F32"
        kind = more if MORE_BITS.search(name) and layer % 2 == 0 else usual
        kind = head if name == "output.weight" else kind
        if "_exps" in name and experts is not None:
            kind = experts
        return kind if shape[-1] % INPUTS[kind] == 0 else IN_SMALL_BLOCKS[kind]


def _place(architecture: Architecture, name: str, *, in_layer: bool) -> tuple[str, Place]:
    """Return the leaf of a parameter, and how it is stored; the newest way, where there are several."""
    places = architecture.layer if in_layer else architecture.model
    return [(leaf, place) for leaf, place in places.items() if place.name == name][-1]


def file_checkpoint(config: Any, architecture: str, mix: str, folder: Path) -> GgufCheckpoint:
    """Return a checkpoint in a GGUF file beside the config of the model that it was made from.

    Args:
        architecture: as llama.cpp calls it.
        mix: see ``MIXES``.
        folder: an empty one, for the config and the header.
    """
    found = list(Writer(config, architecture, mix).tensors())
    config.save_pretrained(folder)
    writer = GGUFWriter(folder / "header", architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_expert_count(1)
    for tensor, shape, kind in found:
        if kind == "F32":
            writer.add_tensor_info(tensor.name, shape, np.dtype(np.float32), tensor.nbytes)
        else:
            stored = (*shape[:-1], row_bytes(kind, shape[-1]))
            raw = GGMLQuantizationType[kind]
            writer.add_tensor_info(tensor.name, stored, np.dtype(np.uint8), tensor.nbytes, raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    header = (folder / "header").read_bytes()
    header += bytes(-len(header) % ALIGNMENT)
    name = FileName("model.gguf")
    file = MadeFile(f"{folder}/{name}", header, [tensor for tensor, *_ in found], ALIGNMENT)
    original = FolderCheckpoint(LocalFolder(folder))
    return GgufCheckpoint(MadeFolder(LocalFolder(folder), {name: file}), name, original)
