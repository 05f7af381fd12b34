"""NVFP4 matrices of GGUF files, whose weights a number of the file multiplies, as llama.cpp's converter writes them."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from expert_store import CheckpointError
from server.kernels.formats.ggml_types import GGML_TYPES
from server.model.checkpoint import packed_trunk
from server.model.trunk_loader import load_trunk
from tests.gguf.models import FILES
from tests.packed_models import pack_model
from tests.server.kernels.formats.ggml_matrices import NUMBERS, random_rows
from tests.server.model.checkpoint.gguf.test_gguf_checkpoint import logits_of

NVFP4 = gguf.GGMLQuantizationType.NVFP4
INPUTS = 64  # of a block


def write(path: Path, *, as_floats: bool = False, num_factors: int | None = None) -> Path:
    """Write a model with NVFP4 experts and matrices of the trunk.

    Args:
        as_floats: store the numbers that these stand for.
        num_factors: of each stack of experts; None for one each.
    """
    reader, writer = gguf.GGUFReader(FILES / "qwen3vlmoe.gguf"), gguf.GGUFWriter(path, "")
    for key, field in reader.fields.items():
        if not key.startswith("GGUF."):
            kinds = [*field.types, None]
            writer.add_key_value(key, field.contents(), kinds[0], sub_type=kinds[1])
    for seed, tensor in enumerate(reader.tensors):
        shape = tuple(map(int, reversed(tensor.shape)))
        is_matrix = any(part in tensor.name for part in ("_exps.", "attn_q.", "attn_output.")) and len(shape) > 1
        if not is_matrix or shape[-1] % INPUTS:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
            continue
        rows = random_rows("NVFP4", int(np.prod(shape[:-1])), shape[-1], seed)
        count = shape[0] if len(shape) > 2 else 1
        factors = np.random.default_rng(seed).uniform(0.25, 0.5, count).astype(np.float32)
        if as_floats:
            numbers = GGML_TYPES[NUMBERS["NVFP4"]].dequantise_rows(rows, shape[-1]).view(shape).numpy()
            writer.add_tensor(tensor.name, numbers * factors.reshape(-1, *[1] * (len(shape) - 1)))
            continue
        writer.add_tensor(tensor.name, rows.numpy().reshape(*shape[:-1], -1), raw_dtype=NVFP4)
        stem = tensor.name.removesuffix(".weight")
        writer.add_tensor(f"{stem}.scale", factors[: num_factors or count])
        writer.add_tensor(f"{stem}.input_scale", factors)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(autouse=True)
def of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small layers stay quantised, too."""
    monkeypatch.setattr(packed_trunk, "LEAST_WEIGHTS", 1)


def test_weights_are_multiplied_by_the_numbers_of_the_file(tmp_path: Path) -> None:
    found = logits_of(write(tmp_path / "nvfp4.gguf"))
    expected = logits_of(write(tmp_path / "floats.gguf", as_floats=True))
    assert float((found - expected).abs().max()) < 1e-4 * float(expected.max() - expected.min())


def test_matrices_of_the_trunk_stay_quantised(tmp_path: Path) -> None:
    trunk = load_trunk(write(tmp_path / "nvfp4.gguf"), torch.float32)
    assert any("attn" in name and name.endswith("_divisor") for name, _ in trunk.model.named_buffers())


def test_a_pack_keeps_the_type_and_the_numbers(tmp_path: Path) -> None:
    path = write(tmp_path / "nvfp4.gguf")
    assert torch.equal(logits_of(pack_model(path, tmp_path / "out", "unchanged")), logits_of(path))


def test_another_number_of_factors_than_experts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"_exps\.scale is not a number for each expert"):
        load_trunk(write(tmp_path / "nvfp4.gguf", num_factors=1), torch.float32)
