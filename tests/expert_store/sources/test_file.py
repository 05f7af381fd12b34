"""Files as sources: reads that are aligned or not, direct or refused, short or failing."""

from __future__ import annotations

import errno
import logging
import os
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expert_store.arena import page_aligned
from expert_store.errors import (
    CheckpointError,
    ShortReadError,
    SourceChangedError,
    SourceError,
    SourceGoneError,
    SourceTimeoutError,
    SourceUnreadableError,
)
from expert_store.sources.base import PAGE_BYTES, Piece
from expert_store.sources.file import DirectFile, FileSource

SIZE = 5 * PAGE_BYTES + 123
CONTENT = np.random.default_rng(0).integers(0, 256, SIZE, dtype=np.uint8)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "some.bin"
    path.write_bytes(CONTENT.tobytes())
    return path


def check(file: DirectFile, *runs: tuple[int, int]) -> None:
    """Read runs ``(offset, nbytes)`` through a bounce buffer of two pages and compare them with the content."""
    pieces = [Piece(offset, np.empty(nbytes, dtype=np.uint8)) for offset, nbytes in runs]
    file.read(pieces, page_aligned(2 * PAGE_BYTES))
    for piece in pieces:
        assert np.array_equal(piece.target, CONTENT[piece.offset : piece.end])


class Reads:
    """Stands in for ``os.preadv`` and notes each call; ``change`` may alter what it returns or raises."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, change: Any = None):
        self.calls: list[tuple[int, int]] = []  # offset and length
        self._read, self._change = os.preadv, change
        monkeypatch.setattr(os, "preadv", self)

    def __call__(self, file: int, buffers: list[memoryview], offset: int) -> int:
        self.calls.append((offset, len(buffers[0])))
        if self._change is not None:
            buffers = self._change(file, buffers, offset) or buffers
        return self._read(file, buffers, offset)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, SIZE - 1), st.integers(1, SIZE)), min_size=1, max_size=5))
def test_any_pieces_are_read_right_through_a_small_bounce_buffer(runs: list[tuple[int, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "some.bin"
        path.write_bytes(CONTENT.tobytes())
        file = DirectFile(path)
        check(file, *((offset, min(nbytes, SIZE - offset)) for offset, nbytes in runs))
        file.close()


def test_whole_pages_go_straight_to_their_target(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = DirectFile(path)
    reads = Reads(monkeypatch)
    target = page_aligned(2 * PAGE_BYTES)
    file.read([Piece(PAGE_BYTES, target)], page_aligned(PAGE_BYTES))
    assert reads.calls == [(PAGE_BYTES, 2 * PAGE_BYTES)]
    assert np.array_equal(target, CONTENT[PAGE_BYTES : 3 * PAGE_BYTES])
    file.close()


@pytest.mark.parametrize("is_direct", [True, False])
@pytest.mark.parametrize("offset", [100, PAGE_BYTES + 1, SIZE - 200])
def test_a_piece_with_pages_of_its_own_needs_no_scratch_memory(path: Path, offset: int, *, is_direct: bool) -> None:
    file = DirectFile(path, is_direct=is_direct)
    nbytes = min(2 * PAGE_BYTES, SIZE - offset)
    pages, within = page_aligned(4 * PAGE_BYTES), offset % PAGE_BYTES
    scratch = page_aligned(PAGE_BYTES)
    file.read([Piece(offset, pages[within : within + nbytes], pages)], scratch)
    assert np.array_equal(pages[within : within + nbytes], CONTENT[offset : offset + nbytes])
    assert not scratch.any()
    file.close()


def test_pieces_that_adjoin_are_read_together(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = DirectFile(path)
    reads = Reads(monkeypatch)
    check(file, (1000, 500), (100, 900), (1500, 24))
    assert reads.calls == [(0, PAGE_BYTES)]
    file.close()


def test_a_file_system_that_refuses_direct_opens_is_read_through_the_cache(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real_open = os.open

    def refuse(name: Any, flags: int, *args: Any) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real_open(name, flags, *args)

    monkeypatch.setattr(os, "open", refuse)
    with caplog.at_level(logging.WARNING):
        file = DirectFile(path)
    assert not file.is_direct
    assert "cannot be read directly (Invalid argument)" in caplog.text
    check(file, (17, 9000), (PAGE_BYTES, PAGE_BYTES))
    file.close()


def test_a_file_system_that_refuses_direct_reads_is_asked_once(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file = DirectFile(path)
    direct = file._direct

    def refuse(descriptor: int, buffers: list[memoryview], offset: int) -> None:
        if descriptor == direct:
            raise OSError(errno.EINVAL, "Invalid argument")

    reads = Reads(monkeypatch, refuse)
    with caplog.at_level(logging.WARNING):
        check(file, (17, 9000))
        check(file, (0, PAGE_BYTES))
    assert len(caplog.records) == 1
    assert not file.is_direct
    assert reads.calls[0] == (0, 2 * PAGE_BYTES)
    file.close()


def test_short_reads_are_continued(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where they stop at a place from which no direct read can go on."""
    file = DirectFile(path)
    Reads(monkeypatch, lambda descriptor, buffers, offset: [buffers[0][:777]])
    check(file, (17, 9000))
    file.close()


def test_an_error_is_passed_on(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int, buffers: list[memoryview], offset: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    file = DirectFile(path)
    Reads(monkeypatch, fail)
    with pytest.raises(SourceUnreadableError, match=r"^cannot read some\.bin: Input/output error$"):
        check(file, (17, 9000))
    assert file.is_direct
    file.close()


@pytest.mark.parametrize("is_direct", [True, False])
def test_a_file_that_ends_too_early_is_named_without_its_folder(path: Path, is_direct: bool) -> None:
    file = DirectFile(path)
    if not is_direct:
        file._direct = None
    with pytest.raises(ShortReadError, match=rf"^some\.bin ends at byte {SIZE}, in"):
        file.read([Piece(SIZE - 5, np.empty(6, dtype=np.uint8))], page_aligned(PAGE_BYTES))
    file.close()


def test_a_missing_file_leaves_no_descriptor_open(tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(SourceGoneError):
        DirectFile(tmp_path / "none")
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ESTALE, SourceGoneError),
        (errno.ETIMEDOUT, SourceTimeoutError),
        (errno.EIO, SourceUnreadableError),
    ],
)
def test_errors_of_the_storage_are_told_apart(
    path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[SourceError]
) -> None:
    def fail(descriptor: int, buffers: list[memoryview], offset: int) -> None:
        raise OSError(number, os.strerror(number))

    with closing(FileSource(path).open()) as file:
        Reads(monkeypatch, fail)
        with pytest.raises(kind, match=os.strerror(number)):
            check(file, (17, 9000))


def test_what_is_not_a_regular_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="is not a regular file"):
        FileSource(tmp_path / "pipe").open()


def test_a_file_that_was_written_to_has_another_identity_and_is_refused(path: Path) -> None:
    with closing(FileSource(path).open()) as file, closing(FileSource(path).open()) as again:
        assert file.identity == again.identity
        before = file.identity
        with path.open("ab") as content:
            content.write(b"x")
        assert file.identity != before
        with pytest.raises(SourceChangedError, match=r"^some\.bin was written to"):
            file.refuse_changed()


def test_a_read_without_scratch_memory_goes_through_the_page_cache(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(FileSource(path).open(is_direct=False)) as file:
        reads = Reads(monkeypatch)
        target = np.empty(9000, dtype=np.uint8)
        file.read([Piece(17, target)])
        assert reads.calls == [(17, 9000)]
        assert np.array_equal(target, CONTENT[17:9017])
