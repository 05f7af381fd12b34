"""Writer of a shape's GGUF file."""

from __future__ import annotations

import errno
import json
import math
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from benchmarks.family_checkpoints import make_tokenizer
from benchmarks.made_gguf.blocks import FORMATS
from benchmarks.made_gguf.heat import RowLengths
from benchmarks.made_gguf.shapes import Shape, Tensor

HEADER_BYTES = 16 << 20  # at most, for the vocabulary
SEED = 7
NORMAL_TOKEN, CONTROL_TOKEN = 1, 3


class WriteError(Exception):
    """The file can't be written."""


def write_gguf(shape: Shape, path: Path, row_lengths: RowLengths) -> None:
    """Write a shape's file with random weights.

    Raises:
        WriteError: If the folder has too little space, or can't be written.
    """
    needed = shape.nbytes + HEADER_BYTES
    partial = path.with_suffix(".partial.gguf")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(path.parent).free
        if free < needed:
            raise WriteError(
                f"{path} takes {needed / 1e9:.1f} GB, and {path.parent} has {free / 1e9:.1f} GB free; "
                "free some, or give another folder with --work"
            )
        _write(shape, partial, row_lengths)
        partial.rename(path)
    except OSError as error:
        what = "the disk is full" if error.errno == errno.ENOSPC else str(error)
        raise WriteError(f"{path} can't be written: {what}; give another folder with --work") from error
    finally:
        partial.unlink(missing_ok=True)


def _write(shape: Shape, path: Path, row_lengths: RowLengths) -> None:
    rng = np.random.default_rng(SEED)
    writer = gguf.GGUFWriter(path, shape.architecture)
    try:
        for name, value in shape.metadata().items():
            writer.add_key_value(f"{shape.architecture}.{name}", value, _value_type(value))
        writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_K_M)
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        _add_tokenizer(writer, shape.vocabulary)
        tensors = list(shape.tensors())
        for tensor in tensors:
            if tensor.type == "F32":
                writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), tensor.nbytes)
            else:
                row_bytes = FORMATS[tensor.type].nbytes(tensor.shape[-1])
                kind = gguf.GGMLQuantizationType[tensor.type]
                stored = (*tensor.shape[:-1], row_bytes)
                writer.add_tensor_info(tensor.name, stored, np.dtype(np.uint8), math.prod(stored), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in tensors:
            writer.write_tensor_data(_values(tensor, shape.top_k, row_lengths, rng))
    finally:
        writer.close()


def _values(tensor: Tensor, top_k: int, row_lengths: RowLengths, rng: np.random.Generator) -> npt.NDArray[Any]:
    match tensor.fill:
        case "ones":
            return np.ones(tensor.shape, np.float32)
        case "zeros":
            return np.zeros(tensor.shape, np.float32)
        case "router":
            rows = rng.standard_normal(tensor.shape) * tensor.deviation
            return (rows * row_lengths(len(rows), top_k, rng)[:, None]).astype(np.float32)
        case "random":
            return FORMATS[tensor.type].random(tensor.shape, tensor.deviation, rng)


def _value_type(value: Any) -> gguf.GGUFValueType:
    if isinstance(value, bool):
        return gguf.GGUFValueType.BOOL
    kinds = {int: gguf.GGUFValueType.UINT32, float: gguf.GGUFValueType.FLOAT32, str: gguf.GGUFValueType.STRING}
    return kinds[type(value)]


def _add_tokenizer(writer: gguf.GGUFWriter, vocabulary: int) -> None:
    """Add a tokenizer in which nearly every token is complete text, so that streams have a chunk for each."""
    tokenizer = make_tokenizer(vocabulary)
    places = tokenizer.get_vocab()
    special = set(tokenizer.all_special_tokens)
    tokens = sorted(places, key=places.__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([CONTROL_TOKEN if token in special else NORMAL_TOKEN for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in _merges(tokenizer)])
    writer.add_eos_token_id(0)
    writer.add_pad_token_id(0)
    writer.add_chat_template(str(tokenizer.chat_template))


def _merges(tokenizer: Any) -> list[tuple[str, str]]:
    return json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
