"""Headers of GGUF files are read as they were written; damaged ones are refused by name before any data is read."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from expert_store import CheckpointError, FileSource, read_gguf_header, read_tensor
from server.model.checkpoint.gguf.gguf_file import TYPES

FLOAT32, Q8_0, TEXT = 0, 8, 8
MATRIX = ("m", (2, 32), Q8_0, 0)  # name, shape with the innermost dimension last, type, offset
ROW = 34  # bytes of 32 weights of Q8_0


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def file(
    *tensors: tuple[str, tuple[int, ...], int, int],
    values: bytes = b"",
    num_values: int = 0,
    data: bytes = bytes(128),
    version: int = 3,
    num_tensors: int | None = None,
) -> bytes:
    header = b"GGUF" + struct.pack("<IQQ", version, len(tensors) if num_tensors is None else num_tensors, num_values)
    header += values
    for name, shape, kind, offset in tensors:
        header += text(name) + struct.pack("<I", len(shape))
        header += b"".join(struct.pack("<Q", size) for size in reversed(shape)) + struct.pack("<IQ", kind, offset)
    return header + bytes(-len(header) % 32) + data


def read(folder: Path, content: bytes) -> Any:
    path = folder / "model.gguf"
    path.write_bytes(content)
    return read_gguf_header(FileSource(path), TYPES)


def test_values_and_tensors_are_read_as_llama_cpp_writes_them(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "qwen3moe")
    writer.add_uint32("some.count", 7)
    writer.add_float32("some.number", 0.5)
    writer.add_bool("some.truth", True)
    writer.add_array("some.numbers", [1, 2, 3])
    writer.add_token_list([f"token {number}é" for number in range(100_000)])
    plain = np.random.default_rng(0).standard_normal((3, 5), np.float32)
    blocks = gguf.quants.quantize(np.ones((2, 3, 64), np.float32), gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("plain", plain)
    writer.add_tensor("blocks", blocks, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    header = read_gguf_header(FileSource(path), TYPES)
    found = header.metadata
    assert [found["some.count"], found["some.number"], found["some.truth"]] == [7, 0.5, True]
    assert found["some.numbers"].tolist() == [1, 2, 3]
    assert found["tokenizer.ggml.tokens"][99_999] == "token 99999é"
    tensors = {tensor.name: tensor for tensor in header.tensors}
    assert torch.equal(read_tensor(tensors["plain"].source), torch.from_numpy(plain))
    assert tensors["blocks"].shape == (2, 3, 64)
    assert np.array_equal(read_tensor(tensors["blocks"].source).numpy(), blocks)


def test_types_have_the_sizes_of_the_package_gguf() -> None:
    for number, kind in TYPES.items():
        theirs = gguf.GGMLQuantizationType(number)
        assert (kind.name, (kind.inputs, kind.nbytes)) == (theirs.name, gguf.GGML_QUANT_SIZES[theirs])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a GGUF file"),
        (b"GGML" + bytes(100), "is not a GGUF file"),
        (b"GGUF", "cut short or damaged"),
        (file(version=1), "has version 1 of the format"),
        (file(version=3 << 24), "is big-endian"),
        (file(num_tensors=1 << 40), "claims to hold"),
        (file(num_values=1 << 40), "claims to hold"),
        (file(num_values=3), "damaged"),
        (file(values=struct.pack("<Q", 1 << 60), num_values=1), "claims to be"),
        (file(values=text(b"\xff\xfe") + struct.pack("<I", 4) + bytes(4), num_values=1), "is not UTF-8"),
        (file(values=text("key") + struct.pack("<I", 13) + bytes(8), num_values=1), "key has the unknown type 13"),
        (
            file(values=text("key") + struct.pack("<IIQ", 9, 9, 1), num_values=1),
            "key is an array of the unknown type 9",
        ),
        (file(values=text("key") + struct.pack("<IIQ", 9, 4, 1 << 50), num_values=1), "cut short or damaged"),
        (file(values=text("key") + struct.pack("<IIQ", 9, TEXT, 1 << 50), num_values=1), "cut short or damaged"),
        (file(values=2 * (text("key") + struct.pack("<II", 4, 1)), num_values=2), "key comes twice"),
        (file(values=text("general.alignment") + struct.pack("<II", 4, 48), num_values=1), "not a power of two"),
        (file(("m", (), Q8_0, 0)), "m has 0 dimensions"),
        (file(("m", (2, 2, 2, 2, 32), Q8_0, 0)), "m has 5 dimensions"),
        (file(("m", (2, 32), 99, 0)), "m has the type 99, which Greenroom does not know"),
        (file(("m", (2, 33), Q8_0, 0)), r"m has the shape \[2, 33\]"),
        (file(("m", (0, 32), Q8_0, 0)), r"m has the shape \[0, 32\]"),
        (file(("m", (2, 32), Q8_0, 8)), "m lies at 8"),
        (file(("m", (1 << 62, 1 << 63), FLOAT32, 0)), "the file is cut short"),
        (file(MATRIX, data=bytes(2 * ROW - 1)), "the file is cut short"),
        (file(MATRIX, ("n", (1, 32), Q8_0, 64)), "n overlaps"),
        (file(MATRIX, ("m", (1, 32), Q8_0, 96), data=bytes(256)), "m comes twice"),
    ],
)
def test_a_damaged_header_is_refused_with_what_is_wrong(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read(tmp_path, content)


def test_no_number_of_cut_bytes_breaks_the_reader(tmp_path: Path) -> None:
    whole = file(
        MATRIX, values=text("key") + struct.pack("<I", TEXT) + text("value"), num_values=1, data=bytes(2 * ROW)
    )
    assert read(tmp_path, whole).metadata == {"key": "value"}
    for length in range(len(whole)):
        with pytest.raises(CheckpointError):
            read(tmp_path, whole[:length])


@pytest.mark.hypothesis
@settings(max_examples=100)
@given(changes=st.lists(st.tuples(st.integers(0, 120), st.integers(0, 255)), min_size=1, max_size=6))
def test_changed_bytes_give_a_header_inside_the_file_or_a_refusal(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]]
) -> None:
    content = bytearray(file(MATRIX, ("n", (1, 32), Q8_0, 96), data=bytes(256)))
    for place, value in changes:
        content[place] = value
    try:
        header = read(tmp_path_factory.getbasetemp(), bytes(content))
    except CheckpointError:
        return
    for tensor in header.tensors:
        extent = tensor.source.extent
        assert 0 <= extent.offset <= extent.offset + extent.nbytes <= len(content)
