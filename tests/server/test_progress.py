"""Progress of long operations: log lines, or a bar on a terminal."""

from __future__ import annotations

import io
import logging
import sys
import threading
from collections.abc import Callable

import pytest

from server import progress
from server.observability.log_writer import write_above_progress_bars
from server.progress import polled_progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def on_terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Terminal]:
    """Return a function that makes standard error a terminal; it must run within the test, after pytest's capture."""

    def begin() -> Terminal:
        terminal = Terminal()
        monkeypatch.setattr(sys, "stderr", terminal)
        monkeypatch.setattr(progress, "DELAY_SECONDS", 0)
        return terminal

    return begin


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that the test sets."""
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return now


def test_a_log_gets_a_line_every_few_seconds(clock: list[float], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), progress.progress("loading the trunk", 4 << 20) as shown:
        for clock[0] in (1, 4, 5.5, 9, 12):
            shown.advance(1 << 19)
    assert caplog.messages == [
        "loading the trunk: 1.5 MiB of 4.0 MiB (38%)",
        "loading the trunk: 2.5 MiB of 4.0 MiB (62%)",
    ]


def test_a_terminal_gets_a_bar_that_goes_away_and_lines_stand_above_it(on_terminal: Callable[[], Terminal]) -> None:
    terminal = on_terminal()
    with progress.progress("packing", 100) as shown:
        shown.advance(50)
        write_above_progress_bars("by the way")
    assert "packing:  " in terminal.getvalue()
    lines = terminal.getvalue().split("\r")
    assert "by the way\n" in lines
    assert not lines[-2].strip()


def test_bars_are_cleared_when_the_process_ends_meanwhile(on_terminal: Callable[[], Terminal]) -> None:
    terminal = on_terminal()
    with progress.progress("packing", 100):
        progress.clear()
        assert not terminal.getvalue().split("\r")[-2].strip()


def test_polled_progress_calls_the_function(
    on_terminal: Callable[[], Terminal], monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = on_terminal()
    monkeypatch.setattr(progress, "POLL_SECONDS", 0.001)
    asked = threading.Event()

    def done() -> int:
        asked.set()
        return 1000  # more than there is, as of files that grew for another reason

    with polled_progress("downloading", 10, done):
        assert asked.wait(30)
    assert "downloading" in terminal.getvalue()
