"""Conditions under which the bundled adapters and variants are served."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from server.loading.adapters import open_adapter_store
from server.loading.bundled_weights import ADAPTERS, VARIANTS, variants_folder, with_bundled_adapters
from server.loading.load_model import load_model
from server.setting_values import NamedPath, parse_budget
from server.settings import ServeSettings

OWN = Path("own")


def test_the_bundled_model_has_the_bundled_adapters() -> None:
    settings = with_bundled_adapters(None, ServeSettings())
    assert settings.adapters_dir == ADAPTERS
    assert [named.name for named in settings.adapter] == ["legal", "mixture", "python", "recipes"]


@pytest.mark.parametrize(
    ("model", "values"),
    [
        ("other", {}),
        (None, {"adapters_dir": OWN}),
        (None, {"adapter": (NamedPath("own", "own"),)}),
        (None, {"adapter_memory": parse_budget("0")}),
    ],
)
def test_what_the_user_chooses_is_kept(model: str | None, values: dict[str, Any]) -> None:
    settings = ServeSettings(**values)
    assert with_bundled_adapters(model, settings) == settings


@pytest.mark.parametrize(
    ("model", "given", "expected"),
    [(None, None, VARIANTS), (None, OWN, OWN), ("other", OWN, OWN), ("other", None, None)],
)
def test_the_bundled_variants_are_those_of_the_bundled_model(
    model: str | None, given: Path | None, expected: Path | None
) -> None:
    assert variants_folder(model, ServeSettings(experts_dir=given)) == expected


def test_without_room_the_bundled_adapters_are_left_out() -> None:
    settings = with_bundled_adapters(None, ServeSettings())
    assert open_adapter_store(settings, load_model(None, settings), 1000) is None
