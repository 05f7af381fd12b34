"""Packs are whole: after kills, on full disks, beside other packers, over damaged ones."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from expert_store import ExpertKey, PackError, Weights, open_pack
from expert_store.packed.folder import LOCK_NAME
from tests.expert_store.packs import (
    LAYOUT,
    NUM_EXPERTS,
    NUM_LAYERS,
    contents,
    make_source,
    pack,
    served,
    state,
    weights,
)

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[3]
NUM_RECORDS = NUM_LAYERS * NUM_EXPERTS


class StoppedError(Exception):
    """Ends a packing in the middle."""


def stopping_after(count: int) -> Callable[[ExpertKey], Weights]:
    done: list[ExpertKey] = []

    def encode(key: ExpertKey) -> Weights:
        if len(done) == count:
            raise StoppedError
        done.append(key)
        return weights(key)

    return encode


def test_every_expert_comes_back_from_the_place_of_its_own(tmp_path: Path) -> None:
    assert pack(make_source(tmp_path / "model"), tmp_path / "out", jobs=3)
    opened = open_pack(tmp_path / "out")
    assert opened.manifest.model == "tiny"
    assert len([name for name in opened.manifest.files if name.endswith(".pack")]) == 3
    assert served(opened) == {
        ExpertKey(layer, expert): layer * 100 + expert for layer in range(NUM_LAYERS) for expert in range(NUM_EXPERTS)
    }


def test_the_same_model_gives_the_same_bytes_whatever_the_number_of_jobs(tmp_path: Path) -> None:
    source = make_source(tmp_path / "model")
    for jobs in (1, 4):
        pack(source, tmp_path / f"jobs{jobs}", jobs)
    assert contents(tmp_path / "jobs1") == contents(tmp_path / "jobs4")


def test_packing_again_writes_nothing(tmp_path: Path) -> None:
    source, out = make_source(tmp_path / "model"), tmp_path / "out"
    pack(source, out)
    before = contents(out)
    assert not pack(replace(source, encode=stopping_after(0)), out)
    assert contents(out) == before


def test_another_model_of_equal_shapes_replaces_the_pack(tmp_path: Path) -> None:
    out = tmp_path / "out"
    pack(make_source(tmp_path / "model"), out)
    pack(make_source(tmp_path / "model", shift=0.5), out)
    assert state(out) == 0.5
    assert len([path for path in out.iterdir() if path.is_dir()]) == 1


def test_a_stopped_pack_goes_on_where_it_stood(tmp_path: Path) -> None:
    source, out = make_source(tmp_path / "model"), tmp_path / "out"
    with pytest.raises(StoppedError):
        pack(replace(source, encode=stopping_after(5)), out)
    assert state(out) is None
    pack(replace(source, encode=stopping_after(NUM_RECORDS - 5)), out)
    pack(source, tmp_path / "at_once")
    assert contents(out) == contents(tmp_path / "at_once")


def test_a_record_that_was_lost_before_it_reached_the_disk_is_written_again(tmp_path: Path) -> None:
    source, out = make_source(tmp_path / "model"), tmp_path / "out"
    with pytest.raises(StoppedError):
        pack(replace(source, encode=stopping_after(5)), out)
    (file,) = out.glob("*.partial/experts-00000.pack")
    file.write_bytes(bytes(file.stat().st_size))
    pack(source, out)
    assert state(out) == 0.0


def test_a_stopped_pack_of_a_model_that_changed_starts_over(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(StoppedError):
        pack(replace(make_source(tmp_path / "model"), encode=stopping_after(5)), out)
    source = make_source(tmp_path / "model", shift=0.5)
    pack(source, out)
    pack(source, tmp_path / "at_once")
    assert contents(out) == contents(tmp_path / "at_once")


def test_a_model_that_changes_while_it_is_packed_is_refused(tmp_path: Path) -> None:
    source = make_source(tmp_path / "model")

    def encode(key: ExpertKey) -> Weights:
        make_source(tmp_path / "model", shift=0.5)
        return weights(key)

    with pytest.raises(PackError, match="tiny changed while it was packed"):
        pack(replace(source, encode=encode), tmp_path / "out")
    assert state(tmp_path / "out") is None


@pytest.mark.parametrize("old", ["fresh", "over-old"])
def test_a_pack_killed_at_any_write_flush_or_rename_is_old_or_new_and_can_be_finished(tmp_path: Path, old: str) -> None:
    command = [sys.executable, "-m", "tests.expert_store.killed_packer", str(tmp_path), str(tmp_path / "targets"), old]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 2 * NUM_RECORDS + 6
    source = make_source(tmp_path / "new", shift=0.5)
    pack(source, tmp_path / "at_once")
    allowed = {0.25 if old == "over-old" else None, 0.5}
    seen = set()
    for number in range(1, int(done.stdout) + 1):
        out = tmp_path / "targets" / str(number)
        seen.add(state(out))
        pack(source, out)
        assert contents(out) == contents(tmp_path / "at_once"), f"killed at call {number}"
    assert seen == allowed


@pytest.mark.parametrize("room", [0, 100, 5 * LAYOUT.slot_bytes])
def test_a_full_disk_leaves_the_old_pack_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    out = tmp_path / "out"
    pack(make_source(tmp_path / "model"), out)
    before, written, pwrite = contents(out), 0, os.pwrite

    def full(file: int, data: Any, offset: int) -> int:
        nonlocal written
        written += len(data)
        if written > room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return pwrite(file, data, offset)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(PackError, match=r"the disk of .* is full: this pack takes 0\.02 GB beside what is there"):
        pack(make_source(tmp_path / "model", shift=0.5), out)
    assert contents(out) == before


def test_too_little_space_is_found_out_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = os.statvfs(tmp_path)
    values = [*usage[:3], 1, 1, *usage[5:]]
    monkeypatch.setattr(os, "statvfs", lambda _: os.statvfs_result(values))
    source = replace(make_source(tmp_path / "model"), encode=stopping_after(0))
    with pytest.raises(PackError, match="free some space and run the same command again"):
        pack(source, tmp_path / "out")
    assert contents(tmp_path / "out").keys() == {LOCK_NAME}


def test_a_disk_without_room_for_the_folder_itself_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_source(tmp_path / "model")

    def full(path: Path, *_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(PackError, match=r"the disk of .*out is full: this pack takes 0\.02 GB beside what is there"):
        pack(source, tmp_path / "new" / "out")


def test_a_second_packer_is_turned_away(tmp_path: Path) -> None:
    source, out = make_source(tmp_path / "model"), tmp_path / "out"
    pack(source, out)
    with (out / LOCK_NAME).open("r+b") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(PackError, match="another greenroom pack is writing to"):
            pack(source, out)


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    with pytest.raises(PackError, match=r"neither empty nor a packed model: it holds thesis\.txt"):
        pack(make_source(tmp_path / "model"), tmp_path / "out")
    assert contents(tmp_path / "out").keys() == {"thesis.txt"}


def test_a_lone_manifest_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "manifest.json").write_text('{"name": "a web page"}')
    with pytest.raises(PackError, match=r"it holds manifest\.json"):
        pack(make_source(tmp_path / "model"), tmp_path / "out")


def test_a_target_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(PackError, match=r"cannot pack into .*out: File exists"):
        pack(make_source(tmp_path / "model"), tmp_path / "out")


def test_a_read_only_target_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Any, *_: Any, **__: Any) -> int:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    source = make_source(tmp_path / "model")
    monkeypatch.setattr(os, "mkdir", refuse)
    with pytest.raises(PackError, match=r"cannot pack into .*out: Read-only file system"):
        pack(source, tmp_path / "out")


@pytest.mark.parametrize("name", ["experts-00001.pack", "trunk.safetensors", "../manifest.json"])
def test_packing_again_mends_a_damaged_pack(tmp_path: Path, name: str) -> None:
    source, out = make_source(tmp_path / "model"), tmp_path / "out"
    for _ in range(3):  # the mended one can be mended, too
        pack(source, out)
        data = next(path for path in out.iterdir() if path.is_dir())
        raw = bytearray((data / name).read_bytes())
        raw[100] ^= 1
        (data / name).write_bytes(raw)
        assert pack(source, out)
        assert state(out) == 0.0
        assert len([path for path in out.iterdir() if path.is_dir()]) == 1
