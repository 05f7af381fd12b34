"""Packs are whole after interruptions and over damaged ones, and other content of their folder is left alone."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from expert_store import ExpertKey, PackError, Weights, open_pack
from expert_store.packed.folder import JOURNAL_NAME, LOCK_NAME
from tests.expert_store.packs import (
    NUM_EXPERTS,
    NUM_LAYERS,
    contents,
    make_source,
    pack,
    served,
    state,
    weights,
)

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


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    with pytest.raises(PackError, match=r"neither empty nor a packed model: it holds thesis\.txt"):
        pack(make_source(tmp_path / "model"), tmp_path / "out")
    assert contents(tmp_path / "out").keys() == {"thesis.txt"}


@pytest.mark.parametrize("place", ["0123456789abcdef", "0123456789abcdef-2", "0123456789abcdef.partial"])
@pytest.mark.parametrize("has_pack", [False, True], ids=["fresh", "packed"])
def test_a_folder_that_only_looks_like_data_is_left_alone(tmp_path: Path, place: str, has_pack: bool) -> None:
    out = tmp_path / "out"
    if has_pack:
        pack(make_source(tmp_path / "model", shift=0.5), out)
    (out / place).mkdir(parents=True)
    (out / place / "thesis.txt").write_text("years of work")
    before = contents(out)
    with pytest.raises(PackError, match=rf"it holds {place}; move that away, or give an empty folder"):
        pack(make_source(tmp_path / "model"), out)
    assert contents(out) == before


def test_a_file_that_was_put_into_a_pack_is_not_removed_with_it(tmp_path: Path) -> None:
    out = tmp_path / "out"
    pack(make_source(tmp_path / "model", shift=0.5), out)
    (data,) = (path for path in out.iterdir() if path.is_dir())
    (data / "thesis.txt").write_text("years of work")
    with pytest.raises(PackError, match=rf"it holds {data.name}/thesis\.txt; move that away"):
        pack(make_source(tmp_path / "model"), out)
    assert (data / "thesis.txt").read_text() == "years of work"


def test_a_link_in_the_place_of_data_is_not_followed(tmp_path: Path) -> None:
    out = tmp_path / "out"
    pack(make_source(tmp_path / "model", shift=0.5), out)
    (data,) = (path for path in out.iterdir() if path.is_dir())
    data.rename(tmp_path / "elsewhere")
    data.symlink_to(tmp_path / "elsewhere")
    before = contents(tmp_path / "elsewhere")
    with pytest.raises(PackError, match=f"it holds {data.name}"):
        pack(make_source(tmp_path / "model"), out)
    assert contents(tmp_path / "elsewhere") == before


def test_a_journal_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / JOURNAL_NAME).write_text("years of work")
    with pytest.raises(PackError, match=rf"it holds {JOURNAL_NAME}"):
        pack(make_source(tmp_path / "model"), tmp_path / "out")
    assert (tmp_path / "out" / JOURNAL_NAME).read_text() == "years of work"


def test_a_pack_of_another_version_is_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    pack(make_source(tmp_path / "model", shift=0.5), out)
    manifest = out / "manifest.json"
    manifest.write_bytes(manifest.read_bytes().replace(b'"version":1', b'"version":2'))
    pack(make_source(tmp_path / "model"), out)
    assert state(out) == 0.0
    assert len([path for path in out.iterdir() if path.is_dir()]) == 1


def test_a_lone_manifest_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "manifest.json").write_text('{"name": "a web page"}')
    with pytest.raises(PackError, match=r"it holds manifest\.json"):
        pack(make_source(tmp_path / "model"), tmp_path / "out")


def test_a_target_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(PackError, match=r"cannot pack into .*out: File exists"):
        pack(make_source(tmp_path / "model"), tmp_path / "out")


@pytest.mark.slow
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
