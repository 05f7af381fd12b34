"""The store of responses that the settings ask for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from server.api.core.replies.response_store import FILE
from server.lifecycle.service_setup import STORE_BYTES, make_service, open_response_store
from server.settings import ServeSettings, SettingsError, load_settings


def settings(folder: Path, **more: Any) -> ServeSettings:
    return load_settings({"response_store": str(folder), **more}, {}, None)


def test_there_is_no_store_by_default() -> None:
    assert make_service(ServeSettings(), "127.0.0.1").response_store is None


def test_the_store_has_a_gibibyte_and_thirty_days(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr("server.lifecycle.service_setup.ResponseStore", lambda *bounds: asked.extend(bounds))
    open_response_store(settings(tmp_path))
    assert asked == [tmp_path, STORE_BYTES, 30 * 86_400]


def test_a_damaged_store_is_one_sentence_with_the_flag(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"x" * 5000)
    with pytest.raises(SettingsError, match=r"^--response-store .*responses\.sqlite is damaged or no database"):
        make_service(settings(tmp_path), "127.0.0.1")


def test_a_size_below_one_long_conversation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"^--response-store-size 1MiB is too little .* set 64MiB or more"):
        make_service(settings(tmp_path, response_store_size="1MiB"), "127.0.0.1")
