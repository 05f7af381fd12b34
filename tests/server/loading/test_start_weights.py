"""The adapters of a start: those of flags, those of a folder, and those of the last run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from server.engine.interface import AdapterExamples
from server.loading.start_weights import load_start_adapters, open_state, report_unloadable
from server.setting_values import NamedPath
from server.settings import ServeSettings, SettingsError
from tests.adapters import write_adapter
from tests.gates import write_mixture
from tests.server.weights.adapter_rig import Rig


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("law", "code"):
        write_adapter(tmp_path / "adapters" / name)
    return tmp_path / "adapters"


class Starts:
    """Starts of a server with the same folder and state, one after the other."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.rigs = folder, list[Rig]()
        self.state = folder.parent / "state.json"

    def __call__(self, **settings: Any) -> Rig:
        self.rigs.append(Rig(self.folder, num_slots=4))
        given = ServeSettings.model_validate({"adapters_dir": self.folder, "state": self.state, **settings})
        load_start_adapters(given, self.rigs[-1].registry, open_state(given))
        return self.rigs[-1]


@pytest.fixture
def start(folder: Path) -> Iterator[Starts]:
    starts = Starts(folder)
    yield starts
    for rig in starts.rigs:
        rig.memory.close()


def test_all_adapters_of_the_folder_are_loaded_but_the_broken_ones(
    start: Starts, caplog: pytest.LogCaptureFixture
) -> None:
    write_adapter(start.folder / "broken", inputs=31)
    write_mixture(start.folder / "team" / "mix", {"own": 1.0})
    write_adapter(start.folder.parent / "other")
    rig = start(load_adapters="all", adapter=(NamedPath("law", str(start.folder.parent / "other")),))
    assert sorted(rig.registry.names()) == ["code", "law", "team/mix"]
    assert rig.directory.root("law") == str(start.folder.parent / "other")
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 1
    assert warnings[0].startswith("the adapter broken of --load-adapters all is not loaded: broken: 0 of 2 tensors fit")


def test_without_the_flag_nothing_of_the_folder_is_loaded(start: Starts) -> None:
    assert start().registry.names() == []


def test_what_was_loaded_at_run_time_is_loaded_by_the_next_start(start: Starts) -> None:
    start().registry.load("mine", "law", examples=AdapterExamples("Law.", ("Section 1.",)))
    registry = start().registry
    assert registry.names() == ["mine"]
    assert registry.candidates()[0].texts == ("Law.", "Section 1.")


def test_what_was_unloaded_at_run_time_is_not_loaded_by_the_flags_of_the_next_start(start: Starts) -> None:
    flags: dict[str, Any] = {"adapter": (NamedPath("own", str(start.folder / "law")),), "load_adapters": "all"}
    registry = start(**flags).registry
    for name in ("own", "code"):
        registry.unload(name)
    registry = start(**flags).registry
    assert registry.names() == ["law"]
    registry.load("code", "code")
    assert sorted(start(**flags).registry.names()) == ["code", "law"]


def test_an_unload_is_kept_while_the_folder_can_not_be_read(start: Starts) -> None:
    registry = start(load_adapters="all").registry
    away = start.folder.rename(start.folder.parent / "away")
    registry.unload("law")
    away.rename(start.folder)
    assert start(load_adapters="all").registry.names() == ["code"]


def test_a_load_is_kept_by_its_shortest_path(start: Starts) -> None:
    start().registry.load("mine", "./" * 2100 + "law")
    assert '"path": "law"' in start.state.read_text()
    assert start().registry.names() == ["mine"]


def test_what_is_gone_or_outside_is_reported_and_stays_in_the_file_while_the_rest_is_loaded(
    start: Starts, caplog: pytest.LogCaptureFixture
) -> None:
    registry = start().registry
    write_adapter(start.folder.parent / "outside")
    write_adapter(start.folder / "gone")
    for name in ("gone", "law"):
        registry.load(name, name)
    text = start.state.read_text()
    start.state.write_text(text.replace('"path": "law"', f'"path": "{start.folder.parent}/outside"'))
    (start.folder / "gone").rename(start.folder / "elsewhere")
    registry = start().registry
    registry.load("code", "code")
    messages = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [each.partition(" can't")[0] for each in messages[:1]] == ["the adapter gone of --state is not loaded: gone"]
    assert "is outside --adapters-dir" in messages[1]
    assert registry.names() == ["code"]
    (start.folder / "elsewhere").rename(start.folder / "gone")
    assert sorted(start().registry.names()) == ["code", "gone"]


def test_a_state_that_is_none_stops_the_start(start: Starts) -> None:
    start.state.write_text("[]")
    with pytest.raises(SettingsError, match=r"--state .*state.json is no state that this server wrote"):
        start()


def test_a_server_without_adapters_reports_those_of_the_last_run(
    start: Starts, caplog: pytest.LogCaptureFixture
) -> None:
    start().registry.load("law", "law")
    report_unloadable(open_state(ServeSettings(state=start.state)))
    assert "the adapter law of --state is not loaded: start the server with --adapters-dir" in caplog.text
