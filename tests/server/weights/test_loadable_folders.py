"""Folders that can be loaded, below the root of an operator."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import pytest

from server.engine.interface import RequestRefusedError
from server.weights import loadable_folders
from server.weights.loadable_folders import find_folders, list_folders


def is_loadable(names: Collection[str]) -> bool:
    return "config" in names


def write(root: Path, *folders: str) -> None:
    for folder in folders:
        (root / folder).mkdir(parents=True)
        (root / folder / "config").touch()


def test_folders_are_found_at_each_level(tmp_path: Path) -> None:
    write(tmp_path, "law", "team/poems", "team/poems/v2", "a/b/c")
    (tmp_path / "empty").mkdir()
    assert find_folders(tmp_path, is_loadable) == ["a/b/c", "law", "team/poems", "team/poems/v2"]


def test_hidden_and_deeper_folders_are_left_out(tmp_path: Path) -> None:
    write(tmp_path, ".cache/law", "a/b/c/d")
    assert find_folders(tmp_path, is_loadable) == []


def test_a_link_is_followed_only_within_the_root(tmp_path: Path) -> None:
    root = tmp_path / "root"
    write(tmp_path, "secret", "root/law")
    (root / "outside").symlink_to(tmp_path / "secret")
    (root / "inside").symlink_to(root / "law")
    (root / "loop").symlink_to(root)
    found = find_folders(root, is_loadable)
    assert {"law", "inside"} <= set(found)
    assert not any("secret" in path or "outside" in path for path in found)


def test_a_link_to_itself_hides_no_other_folder(tmp_path: Path) -> None:
    write(tmp_path, "law")
    (tmp_path / "loop").symlink_to("loop")
    assert find_folders(tmp_path, is_loadable) == ["law"]


def test_a_root_that_is_a_link_is_followed(tmp_path: Path) -> None:
    write(tmp_path, "root/law")
    (tmp_path / "link").symlink_to(tmp_path / "root")
    assert find_folders(tmp_path / "link", is_loadable) == ["law"]


@pytest.mark.parametrize("limit", ["MAX_FOLDERS", "MAX_VISITED"])
def test_a_list_that_is_cut_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, limit: str
) -> None:
    monkeypatch.setattr(loadable_folders, limit, 2)
    write(tmp_path, "a", "b", "c")
    assert find_folders(tmp_path, is_loadable) == ["a", "b"]
    end = "ends after 2 folders, of which 2 can be loaded: name others by their path"
    assert caplog.messages == [f"the list of {tmp_path} {end}"]


def test_a_complete_list_is_no_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(loadable_folders, "MAX_FOLDERS", 2)
    write(tmp_path, "a", "b")
    assert find_folders(tmp_path, is_loadable) == ["a", "b"]
    assert not caplog.messages


def test_a_root_that_is_gone_is_named_by_its_flag_alone(tmp_path: Path) -> None:
    with pytest.raises(RequestRefusedError, match="the folder of --adapters-dir can't be read") as caught:
        list_folders(tmp_path / "gone", "--adapters-dir", is_loadable)
    assert str(tmp_path) not in str(caught.value)
