"""Weights of GGUF files that can't be used are found and named."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import gguf
import numpy as np
import pytest

from server.cli import verify
from server.model.checkpoint.gguf.gguf_file import GgufFile
from server.model.checkpoint.gguf.verification import HALVES, damaged_tensors
from tests.gguf.models import FILES
from tests.server.kernels.formats.ggml_matrices import random_rows
from tests.server.model.checkpoint.gguf.test_gguf_checkpoint import Q4_0, rewrite

INFINITY = 0x7C00
TENSOR = "blk.1.ffn_up_exps.weight"


def spoil(path: Path, name: str, place: int, value: bytes) -> None:
    """Overwrite some bytes of a tensor."""
    extent = GgufFile.open(path.parent, path.name).tensors[name].source.extent
    with path.open("r+b") as file:
        file.seek(extent.offset + place)
        file.write(value)


def test_every_byte_of_an_undamaged_file_is_read() -> None:
    file, counts = GgufFile.open(FILES, "qwen3moe.gguf"), list[int]()
    assert damaged_tensors(file, counts.append) == {}
    assert sum(counts) == sum(tensor.source.extent.nbytes for tensor in file.tensors.values())


@pytest.mark.parametrize("name", HALVES)
def test_the_places_of_scales_are_those_that_the_package_gguf_multiplies_by(name: str) -> None:
    kind, row = gguf.GGMLQuantizationType[name], random_rows(name, 1, 256).numpy()
    assert np.isfinite(gguf.quants.dequantize(row, kind)).all()
    for place in HALVES[name]:
        changed = row.copy()
        changed[0, place : place + 2] = np.frombuffer(INFINITY.to_bytes(2, "little"), np.uint8)
        with np.errstate(all="ignore"):
            assert not np.isfinite(gguf.quants.dequantize(changed, kind)).all()


@pytest.mark.parametrize("block", [0, 7])
def test_an_infinite_scale_is_found_in_any_block(tmp_path: Path, block: int) -> None:
    path = rewrite(tmp_path / "tiny.gguf", Q4_0)
    spoil(path, TENSOR, 18 * block, INFINITY.to_bytes(2, "little"))
    assert damaged_tensors(GgufFile.open(path.parent, path.name), lambda _: None) == {
        TENSOR: "it holds NaN or infinity"
    }


def test_nan_is_found_among_plain_numbers(tmp_path: Path) -> None:
    path = rewrite(tmp_path / "tiny.gguf")
    spoil(path, "blk.0.attn_norm.weight", 4, b"\xff\xff\xff\xff")
    assert list(damaged_tensors(GgufFile.open(path.parent, path.name), lambda _: None)) == ["blk.0.attn_norm.weight"]


def test_the_command_names_the_damage_and_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = rewrite(tmp_path / "tiny.gguf", Q4_0)
    assert verify.run(Namespace(pack=path, logits=False)) == 0
    spoil(path, TENSOR, 0, INFINITY.to_bytes(2, "little"))
    assert verify.run(Namespace(pack=tmp_path, logits=False)) == 1
    assert f"1 of 27 tensors of {path} are damaged: {TENSOR}" in capsys.readouterr().err
