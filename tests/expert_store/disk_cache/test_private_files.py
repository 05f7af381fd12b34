"""Files of a cache are of one user alone, and files that others may have made are refused."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from expert_store.disk_cache.disk_cache import DiskCache
from expert_store.disk_cache.extent_log import RECORD, encoded
from expert_store.errors import CheckpointError, SourceUnreadableError
from tests.expert_store.disk_cache.test_cached_source import CONTENT, CountedSource, opened, read

NOBODY = 65534

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files to other users")


@pytest.fixture
def source() -> CountedSource:
    return CountedSource()


def modes(folder: Path) -> set[int]:
    return {path.stat().st_mode & 0o777 for path in folder.iterdir()}


def test_folder_and_files_are_of_their_owner_alone(source: CountedSource, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        read(opened(source, tmp_path / "cache"), (0, 100))
    finally:
        os.umask(before)
    assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o700
    assert modes(tmp_path / "cache") == {0o600}


def test_a_cache_that_others_could_read_is_closed_to_them_and_used(source: CountedSource, tmp_path: Path) -> None:
    read(opened(source, tmp_path), (0, 100))
    for path in tmp_path.iterdir():
        path.chmod(0o644)
    tmp_path.chmod(0o775)
    source.is_away = True
    read(opened(source, tmp_path), (0, 100))
    assert tmp_path.stat().st_mode & 0o777 == 0o700
    assert modes(tmp_path) == {0o600}


def test_a_folder_that_has_other_files_keeps_its_mode(source: CountedSource, tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    tmp_path.chmod(0o755)
    read(opened(source, tmp_path), (0, 100))
    assert tmp_path.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize(("mode", "name"), [(0o775, "other"), (0o1777, None)], ids=["with other files", "sticky"])
def test_a_folder_that_others_can_write_to_is_refused(tmp_path: Path, mode: int, name: str | None) -> None:
    if name is not None:
        (tmp_path / name).touch()
    tmp_path.chmod(mode)
    with pytest.raises(CheckpointError, match="other users can write to it; give a folder of its own"):
        DiskCache(tmp_path)
    assert tmp_path.stat().st_mode & 0o7777 == mode


@as_root
@pytest.mark.parametrize("is_link", [False, True], ids=["folder", "link"])
def test_a_folder_of_another_user_is_refused(tmp_path: Path, *, is_link: bool) -> None:
    folder = tmp_path / "cache"
    if is_link:
        (tmp_path / "own").mkdir()
        folder.symlink_to(tmp_path / "own")
    else:
        folder.mkdir()
    os.chown(folder, NOBODY, NOBODY, follow_symlinks=False)
    with pytest.raises(CheckpointError, match="it belongs to another user"):
        DiskCache(folder)


def link(path: Path, other: Path) -> None:
    path.symlink_to(other)


def hard_link(path: Path, other: Path) -> None:
    path.hardlink_to(other)


def pipe(path: Path, _: Path) -> None:
    os.mkfifo(path)


def written_by_others(path: Path, other: Path) -> None:
    path.write_bytes(other.read_bytes())
    path.chmod(0o666)


def owned_by_another(path: Path, other: Path) -> None:
    path.write_bytes(other.read_bytes())
    os.chown(path, NOBODY, NOBODY)


PLANTED = [
    (link, "is a link"),
    (hard_link, "has another name, too"),
    (pipe, "is not a regular file"),
    (written_by_others, "could be changed by other users"),
    pytest.param(owned_by_another, "belongs to another user", marks=as_root),
]


@pytest.mark.parametrize("suffix", [".data", ".extents"])
@pytest.mark.parametrize(("plant", "reason"), PLANTED)
def test_a_planted_file_is_refused_and_what_it_leads_to_is_kept(
    source: CountedSource,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    *,
    plant: Callable[[Path, Path], None],
    reason: str,
    suffix: str,
) -> None:
    folder, other = tmp_path / "cache", tmp_path / "other"
    read(opened(source, folder), (0, 100))
    (path,) = folder.glob(f"*{suffix}")
    path.unlink()
    other.write_bytes(b"a diary")
    plant(path, other)
    cached = opened(source, folder)
    read(cached, (0, 200))
    assert other.read_bytes() == b"a diary"
    assert f"{path} {reason}" in caplog.text.replace("is a file that ", "")
    assert cached.cache.failures()["refused"] == 1


def test_a_planted_note_about_a_source_counts_as_none(source: CountedSource, tmp_path: Path) -> None:
    read(opened(source, tmp_path / "cache"), (0, 100))
    (note,) = (tmp_path / "cache").glob("*.about")
    note.replace(tmp_path / "note")
    note.symlink_to(tmp_path / "note")
    source.is_away = True
    with pytest.raises(SourceUnreadableError):
        opened(source, tmp_path / "cache")


def test_other_sources_are_kept_beside_a_planted_file(source: CountedSource, tmp_path: Path) -> None:
    read(opened(source, tmp_path), (0, 100))
    (path,) = tmp_path.glob("*.data")
    path.unlink()
    path.symlink_to(tmp_path / "other")
    cache = DiskCache(tmp_path)
    assert cache.file(source.identity) is None
    source.version = "2"
    file = cache.file(source.identity)
    assert file is not None
    assert cache.store(file, 0, CONTENT[:100])


def test_a_planted_file_does_not_make_the_cache_seem_full(source: CountedSource, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(bytes(1_000_000))
    (tmp_path / "cache").mkdir(mode=0o700)
    (tmp_path / "cache" / f"{0:040}.data").symlink_to(tmp_path / "large")
    cached = opened(source, tmp_path / "cache", 400_000)
    for begin in (0, 200_000, 400_000):
        read(cached, (begin, begin + 190_000))
    assert cached.holds(400_000, 590_000)


@pytest.mark.parametrize(
    ("begin", "nbytes"), [(1000, 1 << 62), (len(CONTENT) - 10, 20), (0, 2000)], ids=["huge", "past the end", "overlap"]
)
def test_an_impossible_record_is_a_counted_miss(source: CountedSource, tmp_path: Path, begin: int, nbytes: int) -> None:
    first = opened(source, tmp_path)
    read(first, (500, 900))
    (path,) = tmp_path.glob("*.extents")
    with path.open("ab") as file:
        file.write(encoded((begin, nbytes, 0)))
    assert path.stat().st_size == 2 * RECORD.size
    cached = opened(source, tmp_path)
    read(cached, (0, len(CONTENT)))
    assert cached.cache.failures()["damaged"] == 1
    assert cached.cache.hit_bytes == 400
