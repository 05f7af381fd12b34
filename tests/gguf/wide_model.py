"""A tiny Qwen3-MoE in a GGUF file whose rows have 256 numbers, as the blocks of most types need."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

from tests.gguf.models import FILES
from tests.server.kernels.formats.ggml_matrices import random_rows

WIDTH = 256
SAMPLE = FILES / "qwen3moe.gguf"  # whose other fields and sizes the model has
WIDE_FIELDS = ("qwen3moe.embedding_length", "qwen3moe.expert_feed_forward_length", "qwen3moe.feed_forward_length")


def write_wide_model(path: Path, type_name: str) -> Path:
    """Write a model with random experts of a type, and other parameters in float32."""
    reader, writer = gguf.GGUFReader(SAMPLE), gguf.GGUFWriter(path, "")
    for key, field in reader.fields.items():
        if not key.startswith("GGUF."):
            kinds = [*field.types, None]
            writer.add_key_value(key, WIDTH if key in WIDE_FIELDS else field.contents(), kinds[0], sub_type=kinds[1])
    random = np.random.default_rng(0)
    for number, tensor in enumerate(reader.tensors):
        shape = _wide_shape(tensor.name, tuple(map(int, reversed(tensor.shape))))
        if "_exps" in tensor.name:
            experts, outputs, inputs = shape
            rows = random_rows(type_name, experts * outputs, inputs, number).numpy()
            writer.add_tensor(
                tensor.name,
                rows.reshape(experts, outputs, -1),
                raw_dtype=gguf.GGMLQuantizationType[type_name],
            )
            continue
        values = random.standard_normal(shape, np.float32) / np.sqrt(shape[-1]) if len(shape) > 1 else np.ones(shape)
        writer.add_tensor(tensor.name, values.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _wide_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of a tensor in the wide model."""
    if "_exps" in name:
        return (shape[0], WIDTH, WIDTH)
    if name.endswith(("attn_q_norm.weight", "attn_k_norm.weight")):
        return shape
    if name.endswith("attn_output.weight"):
        return (WIDTH, shape[1])
    return (*shape[:-1], WIDTH)
