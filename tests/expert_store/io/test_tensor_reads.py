"""Tensors that are read in parallel: the bytes of the file, in order, or an error that names tensor and file."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from expert_store import TensorReads, TensorSource, read_index
from expert_store.errors import ShortReadError, SourceUnreadableError, StoreFailedError
from expert_store.io import tensor_reads
from expert_store.sources.base import Bytes, OpenSource, Piece
from expert_store.sources.file import DirectFile
from expert_store.sources.memory import MemorySource

SHAPES = {"large": (700, 1000), "empty": (0, 4), "small": (3,), "odd": (1001,)}


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator).bfloat16() for name, shape in SHAPES.items()}


@pytest.fixture
def sources(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> list[TensorSource]:
    save_file(tensors, tmp_path / "a.safetensors")
    index = read_index([tmp_path / "a.safetensors"])
    return [index[name] for name in SHAPES]


@pytest.mark.parametrize("ahead_bytes", [1, 1 << 30])
def test_tensors_are_those_of_the_file_whatever_is_read_ahead(
    monkeypatch: pytest.MonkeyPatch, sources: list[TensorSource], tensors: dict[str, torch.Tensor], ahead_bytes: int
) -> None:
    """The large one is read in several parts, which do not begin where it begins."""
    monkeypatch.setattr(tensor_reads, "PART_BYTES", 64 << 10)
    monkeypatch.setattr(tensor_reads, "AHEAD_BYTES", ahead_bytes)
    with TensorReads(sources, 3) as reads:
        assert all(torch.equal(reads.take(source), tensors[source.name]) for source in sources)


def test_no_more_is_read_ahead_than_allowed(monkeypatch: pytest.MonkeyPatch, sources: list[TensorSource]) -> None:
    monkeypatch.setattr(tensor_reads, "AHEAD_BYTES", 1)
    with TensorReads([*sources, *sources]) as reads:
        reads.take(sources[0])
        assert [read.source for read in reads._begun] == [sources[1], sources[2]]


def test_a_tensor_out_of_turn_is_refused(sources: list[TensorSource]) -> None:
    with TensorReads(sources) as reads, pytest.raises(ValueError, match="small is not the tensor to be taken next"):
        reads.take(sources[2])


def raising(error: BaseException) -> Callable[..., Any]:
    def fail(*_: object) -> None:
        raise error

    return fail


def test_a_failed_read_names_tensor_and_file(monkeypatch: pytest.MonkeyPatch, sources: list[TensorSource]) -> None:
    with TensorReads(sources) as reads:
        monkeypatch.setattr(os, "preadv", raising(OSError(errno.EIO, "Input/output error")))
        with pytest.raises(SourceUnreadableError, match=r"^cannot read large from .*a\.safetensors: Input/output"):
            reads.take(sources[0])


def test_a_file_that_was_cut_short_is_told_with_the_tensor(tmp_path: Path, sources: list[TensorSource]) -> None:
    os.truncate(tmp_path / "a.safetensors", sources[0].extent.offset + 5)
    with (
        TensorReads(sources) as reads,
        pytest.raises(ShortReadError, match=r"a\.safetensors ends inside large; it was"),
    ):
        reads.take(sources[0])


def test_a_thread_that_dies_is_told(monkeypatch: pytest.MonkeyPatch, sources: list[TensorSource]) -> None:
    monkeypatch.setattr(DirectFile, "read", raising(SystemExit("killed")))
    with TensorReads(sources) as reads, pytest.raises(StoreFailedError, match="a thread that reads experts died"):
        reads.take(sources[0])


def test_no_file_and_no_thread_is_left(sources: list[TensorSource]) -> None:
    handles, threads = len(list(Path("/proc/self/fd").iterdir())), threading.active_count()
    with TensorReads(sources) as reads:
        reads.take(sources[0])
    assert len(list(Path("/proc/self/fd").iterdir())) == handles
    assert threading.active_count() == threads


def test_small_tensors_are_read_together(monkeypatch: pytest.MonkeyPatch, sources: list[TensorSource]) -> None:
    assert pieces_by_read(monkeypatch, DirectFile, [sources[2], sources[0], sources[3]]) == [1, 2]


def test_all_tensors_of_a_server_that_are_no_part_are_read_together(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, sources: list[TensorSource]
) -> None:
    content = MemorySource("far", (tmp_path / "a.safetensors").read_bytes())
    far = [replace(each, extent=replace(each.extent, source=content)) for each in sources]
    assert pieces_by_read(monkeypatch, MemorySource, far) == [4]


def pieces_by_read(monkeypatch: pytest.MonkeyPatch, kind: type[Any], sources: list[TensorSource]) -> list[int]:
    """Read some tensors, and return how many pieces each read had."""
    read, sizes = kind.read, []

    def count(self: OpenSource, pieces: Sequence[Piece], scratch: Bytes | None = None) -> None:
        sizes.append(len(pieces))
        read(self, pieces, scratch)

    monkeypatch.setattr(kind, "read", count)
    with TensorReads(sources) as reads:
        for source in sources:
            reads.take(source)
    return sorted(sizes)


def test_memory_that_is_given_back_holds_a_later_tensor(
    monkeypatch: pytest.MonkeyPatch, sources: list[TensorSource], tensors: dict[str, torch.Tensor]
) -> None:
    monkeypatch.setattr(tensor_reads, "HUGE_BYTES", 1)
    monkeypatch.setattr(tensor_reads, "AHEAD_BYTES", 1)
    large = sources[0]
    with TensorReads([large] * 4) as reads:
        first = reads.take(large)
        place = first.data_ptr()
        reads.reuse(first)
        later = [reads.take(large) for _ in range(3)]
    assert place in {each.data_ptr() for each in later}
    assert all(torch.equal(each, tensors[large.name]) for each in later)
