"""Command line beats environment beats file; a bad value is named with where it came from."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import get_args

import pytest

from expert_store.policies import POLICIES
from server.settings import ServeSettings, SettingsError, add_flags, load_settings, parse_budget


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_defaults_are_those_of_the_contract() -> None:
    settings = load_settings({}, {}, None)
    assert (settings.host, settings.port) == ("127.0.0.1", 8000)
    assert settings.host_expert_memory == "auto"
    assert (settings.max_running_requests, settings.max_queued_requests) == (64, 256)


def test_command_line_beats_environment_beats_file(tmp_path: Path) -> None:
    config = write(tmp_path / "g.toml", 'port = 1\nhost = "file"\nmax-model-len = 7\n')
    environment = {"GREENROOM_PORT": "2", "GREENROOM_HOST": "environment", "PORT": "9"}
    settings = load_settings({"port": "3", "model": None}, environment, config)
    assert (settings.port, settings.host, settings.max_model_len) == (3, "environment", 7)


@pytest.mark.parametrize(
    ("flags", "environment", "toml", "message"),
    [
        ({"port": "99999"}, {}, "", "--port '99999'"),
        ({}, {"GREENROOM_PORT": "x"}, "", "GREENROOM_PORT 'x'"),
        ({}, {}, "port = -1", "port in .*: Input should be greater"),
        ({}, {}, "colour = 1", "colour in .*: Extra inputs"),
        ({}, {}, "port =", "is not TOML"),
        ({"host_expert_memory": "much"}, {}, "", "--host-expert-memory 'much': 'much' is not a size; write it as 6GiB"),
        ({"host_expert_memory": "150%"}, {}, "", "the most is 100%"),
        ({"kv_cache_memory": "10%"}, {}, "", "--kv-cache-memory '10%': '10%' is a percentage"),
        ({"device": "tpu"}, {}, "", "--device 'tpu': write auto, cpu, cuda or cuda:N"),
    ],
)
def test_a_bad_value_is_named_with_its_place(
    tmp_path: Path, flags: dict[str, str], environment: dict[str, str], toml: str, message: str
) -> None:
    config = write(tmp_path / "g.toml", toml) if toml else None
    with pytest.raises(SettingsError, match=message):
        load_settings(flags, environment, config)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"none\.toml: No such file"):
        load_settings({}, {}, tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("auto", 77),
        ("6GiB", 6 << 30),
        ("1.5 MiB", 3 << 19),
        ("512MB", 512_000_000),
        ("1000", 1000),
        ("10b", 10),
        ("25%", 250),
        ("0%", 0),
        ("100%", 1000),
    ],
)
def test_sizes(text: str, expected: int) -> None:
    assert parse_budget(text).resolve(total=1000, auto=77) == expected


@pytest.mark.parametrize("text", ["", "-1", "5 apples", "GiB", "1e9", "NaN", "50 %%"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        parse_budget(text)


def test_settings_do_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        ServeSettings().port = 1  # type: ignore[misc]


def test_the_policies_on_offer_are_those_of_the_store() -> None:
    """Settings know no other room, so the names stand twice."""
    assert get_args(ServeSettings.model_fields["cache_policy"].annotation) == POLICIES


def test_a_switch_takes_no_value_on_the_command_line_and_one_elsewhere(tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    add_flags(parser)
    flags = vars(parser.parse_args(["--deterministic", "--port", "1"]))
    assert load_settings(flags, {}, None).deterministic
    assert not load_settings(vars(parser.parse_args([])), {}, None).deterministic
    assert load_settings({}, {"GREENROOM_DETERMINISTIC": "1"}, None).deterministic
    assert load_settings({}, {}, write(tmp_path / "g.toml", "deterministic = true")).deterministic
    with pytest.raises(SettingsError, match="GREENROOM_DETERMINISTIC 'perhaps'"):
        load_settings({}, {"GREENROOM_DETERMINISTIC": "perhaps"}, None)
