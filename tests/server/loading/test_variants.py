"""Variants of the bundled model that are loaded at start."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.loading.bundled_weights import VARIANTS
from server.loading.load import LoadedServer, load_server
from server.setting_values import NamedPath, parse_budget
from server.settings import ServeSettings, SettingsError


def start(folder: Path, path: Path) -> LoadedServer:
    settings = ServeSettings(
        variant=(NamedPath("law", str(path)),), state=folder / "state.json", adapter_memory=parse_budget("0")
    )
    return load_server(None, settings)


@pytest.mark.slow
def test_a_variant_of_the_start_is_served_until_it_is_unloaded_for_good(tmp_path: Path) -> None:
    names = []
    for _ in range(2):
        server = start(tmp_path, VARIANTS / "legal")
        names.append(server.directory.names())
        if "law" in server.variants.names():
            server.variants.unload("law")
            server.variants.load("again", "legal")
        server.close()
    assert names == [["greenroom-demo:law"], ["greenroom-demo:again"]]


def test_a_variant_that_can_not_be_served_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"--variant law=.*none: .*none can't be loaded: .*can't be opened"):
        start(tmp_path, tmp_path / "none")
