"""Start of `greenroom replay`: its imports and its arguments."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

import pytest

from server.cli import replay as command
from server.replay.sizes import parse_sizes


def test_a_plot_without_matplotlib_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "find_spec", lambda _: None)
    arguments = argparse.Namespace(traces=[Path("t.jsonl")], plot=Path("x.png"))
    assert command.run(arguments) == 1
    assert capsys.readouterr().err == "greenroom: --plot needs matplotlib: pip install 'greenroom[plot]'\n"


@pytest.mark.parametrize(
    ("text", "slots"), [("29%", 29), ("100%", 100), ("1MiB", 50), ("2.5MiB", 100), ("0%", 0), ("30719", 1)]
)
def test_a_size_is_rounded_down_to_whole_slots_and_never_more_than_there_are_experts(text: str, slots: int) -> None:
    (size,) = parse_sizes(text)
    assert size.num_slots(100, 2 << 20) == slots


def test_command_line_modules_that_help_needs_are_found() -> None:
    from server.cli.main import SUBCOMMANDS  # noqa: PLC0415

    for subcommand in SUBCOMMANDS:
        assert importlib.util.find_spec(subcommand.module) is not None
