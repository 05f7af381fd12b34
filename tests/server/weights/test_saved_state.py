"""The file of ``--state``: what it holds after each change, and what is refused as one."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest

from server.engine.interface import AdapterExamples
from server.weights.saved_state import Journal, SavedState, StateError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.json"


def test_what_is_loaded_last_under_a_name_is_kept(path: Path) -> None:
    adapters = Journal(SavedState(path), "adapters", lambda _: False)
    adapters.loaded("law", "law-1")
    adapters.loaded("code", "code", AdapterExamples("Code.", ("def f",)))
    adapters.loaded("law", "law-2")
    adapters.loaded("gone", "gone")
    adapters.unloaded("gone")
    kept = SavedState(path).adapters
    assert [(each.name, each.path) for each in kept.loaded] == [("code", "code"), ("law", "law-2")]
    assert kept.loaded[0].routing is not None
    assert (kept.loaded[0].routing.description, kept.loaded[0].routing.examples) == ("Code.", ("def f",))
    assert kept.unloaded == ()


def test_an_unload_of_what_flags_load_is_kept_until_it_is_loaded_again(path: Path) -> None:
    state = SavedState(path)
    variants = Journal(state, "variants", "law".__eq__)
    variants.unloaded("law")
    assert SavedState(path).variants.unloaded == ("law",)
    variants.loaded("law", "law")
    assert SavedState(path).variants.unloaded == ()
    assert state.adapters.loaded == ()


def test_others_can_not_read_the_file(path: Path) -> None:
    SavedState(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_write_that_fails_leaves_the_file_as_it_was(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    adapters = Journal(SavedState(path), "adapters", lambda _: False)
    before = path.read_bytes()

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    adapters.loaded("law", "law")
    assert (path.read_bytes(), [each.name for each in path.parent.iterdir()]) == (before, ["state.json"])
    assert "can't be written: No space left on device" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no state that this server wrote"),
        ('{"version": 2}', "version: Input should be 1"),
        ('{"version": 1, "colour": 1}', "colour: Extra inputs are not permitted"),
        ('{"version": 1, "adapters": {"loaded": [{"name": "law"}]}}', r"adapters.loaded.0.path: Field required"),
        ('{"version": 1, "adapters": {"loaded": [{"name": 1, "path": "x"}]}}', "should be a valid string"),
        ('{"version": 1, "variants": {"unloaded": ["law", "law"]}}', "names 'law' twice"),
    ],
)
def test_a_file_that_is_no_state_is_refused_and_kept(path: Path, content: str, message: str) -> None:
    path.write_text(content)
    with pytest.raises(StateError, match=message):
        SavedState(path)
    assert path.read_text() == content


def test_a_file_that_can_not_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StateError, match=r"none/state.json can't be written: No such file or directory"):
        SavedState(tmp_path / "none" / "state.json")


def test_the_file_names_its_version(path: Path) -> None:
    SavedState(path)
    assert json.loads(path.read_text())["version"] == 1
