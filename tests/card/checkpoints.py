"""Tiny checkpoints that the card is compared with: each family that is served, and each format of weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import gguf
import torch

from server.model.checkpoint.weight_formats import WEIGHT_FORMATS, WeightFormat
from tests.checkpoints import save_checkpoint
from tests.families import FAMILIES, WITH_TEXT_OF_ANOTHER, make_config
from tests.gguf.wide_model import write_wide_model
from tests.packed_models import pack_model
from tests.quantise import publish
from tests.server.kernels.formats.ggml_matrices import QUANTISED
from tests.server.model.checkpoint.gguf.test_gguf_checkpoint import rewrite
from tests.server.model.quantised.test_checkpoints import FORMATS

OF_GPT_OSS = ("mxfp4", "modelopt transposed nvfp4")  # whose experts are in one tensor, inputs first
GGUF_TYPES = ("F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")  # of rows that are no multiple of 256
WIDE_GGUF_TYPES = tuple(name for name in QUANTISED if name.startswith(("IQ", "TQ")) or name.endswith("_K"))

Save = Callable[[Path], Path]  # saves a checkpoint in a new folder


def _family(name: str, folder: Path) -> Path:
    return save_checkpoint(make_config(name), folder / "model", torch.float32)


def _published(name: str, folder: Path) -> Path:
    family = "gpt_oss" if name in OF_GPT_OSS else "qwen3_moe"
    config = make_config(family)
    if name.endswith("fp4"):  # their groups are larger
        config.hidden_size, config.intermediate_size, config.moe_intermediate_size = 64, 32, 32
    return publish(save_checkpoint(config, folder / "plain"), folder, FORMATS[name]())[0]


def _pack(weights: WeightFormat, folder: Path) -> Path:
    return pack_model(_family("qwen3_moe", folder), folder / "pack", weights)


def _gguf(type_name: str, folder: Path) -> Path:
    return rewrite(folder / "model.gguf", gguf.GGMLQuantizationType[type_name])


def _wide_gguf(type_name: str, folder: Path) -> Path:
    return write_wide_model(folder / "model.gguf", type_name)


SERVED: Mapping[str, Save] = {name: partial(_family, name) for name in FAMILIES if FAMILIES[name].refusal is None}
IN_FORMATS: Mapping[str, Save] = {
    **{f"published {name}": partial(_published, name) for name in FORMATS},
    **{f"pack {weights}": partial(_pack, weights) for weights in WEIGHT_FORMATS},
    **{f"GGUF {name}": partial(_gguf, name) for name in GGUF_TYPES},
    **{f"GGUF {name}": partial(_wide_gguf, name) for name in WIDE_GGUF_TYPES},
}
CHECKPOINTS: Mapping[str, Save] = {
    name: SERVED[name] for name in SERVED if name not in WITH_TEXT_OF_ANOTHER
} | IN_FORMATS
