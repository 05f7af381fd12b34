"""Adapters are loaded when a request first names their folder, and only then."""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.engine.interface import RequestRefusedError
from server.weights import adapter_registry
from server.weights.adapters_on_request import AdaptersOnRequest
from tests.adapters import change_config, write_adapter
from tests.gates import write_mixture
from tests.server.weights.adapter_rig import Rig


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    (tmp_path / "adapters").mkdir()
    rig = Rig(tmp_path / "adapters")
    yield rig
    rig.memory.close()


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders that were read."""
    found, read = list[Path](), adapter_registry.read_adapter
    monkeypatch.setattr(adapter_registry, "read_adapter", lambda path, *more: found.append(path) or read(path, *more))
    return found


def test_an_adapter_is_loaded_from_the_folder_of_its_name_once(rig: Rig, reads: list[Path]) -> None:
    write_adapter(rig.folder / "team" / "law")
    loader = AdaptersOnRequest(rig.registry, rig.folder)
    assert loader.load("team/law")
    assert loader.load("team/law")
    assert rig.registry.names() == ["team/law"]
    assert reads == [rig.folder / "team" / "law"]


def test_a_mixture_is_loaded_from_the_folder_of_its_name(rig: Rig) -> None:
    write_mixture(rig.folder / "mix", {"law": 1.0})
    assert AdaptersOnRequest(rig.registry, rig.folder).load("mix")
    assert rig.registry.names() == ["mix"]


@pytest.mark.parametrize(
    "name", ["none", "empty", "law/", "law/.", "./law", "a/../law", "../outside", "link", "", "law\0", "/etc", "team"]
)
def test_a_name_without_a_folder_of_an_adapter_below_the_root_is_unknown(rig: Rig, name: str) -> None:
    write_adapter(rig.folder / "law")
    write_adapter(rig.folder / "team" / "law")
    write_adapter(rig.folder.parent / "outside")
    (rig.folder / "empty").mkdir()
    (rig.folder / "link").symlink_to(rig.folder.parent / "outside")
    assert not AdaptersOnRequest(rig.registry, rig.folder).load(name)
    assert rig.registry.names() == []


def test_a_refused_adapter_is_read_again_only_when_its_files_have_changed(rig: Rig, reads: list[Path]) -> None:
    write_adapter(rig.folder / "law")
    change_config(rig.folder / "law", r=2)
    loader = AdaptersOnRequest(rig.registry, rig.folder)
    for _ in range(2):
        with pytest.raises(RequestRefusedError, match="the adapter 'law' can't be loaded: law: 0 of 2 tensors fit"):
            loader.load("law")
    assert len(reads) == 1
    change_config(rig.folder / "law", r=4)
    os.utime(rig.folder / "law" / "adapter_config.json", ns=(1, 1))  # whatever the clock's resolution
    assert loader.load("law")


def test_refusals_of_an_adapter_keep_no_frames_of_earlier_ones(rig: Rig) -> None:
    write_adapter(rig.folder / "law")
    change_config(rig.folder / "law", r=2)
    loader, depths = AdaptersOnRequest(rig.registry, rig.folder), list[int]()
    for _ in range(3):
        with pytest.raises(RequestRefusedError) as caught:
            loader.load("law")
        depths.append(len(list(traceback.walk_tb(caught.value.__traceback__))))
    assert depths[1] == depths[2]
