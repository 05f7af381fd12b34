"""Safe terminal text, sizes, error lines and server arguments."""

from __future__ import annotations

import argparse

import pytest

from client import APIConnectionError, APITimeoutError, AuthenticationError, StreamInterruptedError
from client.errors import ErrorBody
from client.terminal import add_server_arguments, error_line, hit_ratio_text, printable, server_from, size_text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain\n\ttext é 漢 👩\u200d🚀", "plain\n\ttext é 漢 👩\u200d🚀"),
        ("\x1b[2J\x1b]0;title\x07", "␛[2J␛]0;title␇"),
        ("a\x00b\x08c", "a␀b␈c"),
        ("real\rfake\r\n", "realfake\n"),
        ("\x7f\x9b31m\x85", "\ufffd\ufffd31m\ufffd"),
        ("abc\u202etxt.exe\u2066x", "abc\ufffdtxt.exe\ufffdx"),
        ("\ud83d", "\ufffd"),
    ],
)
def test_control_characters_are_made_visible(text: str, shown: str) -> None:
    assert printable(text) == shown
    printable(text).encode()


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (3.5 * 2**20, "3.5 MiB"), (2**30, "1.0 GiB"), (2**42, "4.0 TiB")],
)
def test_sizes_are_short(nbytes: float, text: str) -> None:
    assert size_text(nbytes) == text


@pytest.mark.parametrize(
    ("ratio", "optimal", "text"),
    [
        (None, None, "hit ratio - (optimal -)"),
        (0.5, 0.75, "hit ratio 50.0 % (optimal 75.0 %)"),
        (1.0, 0.998, "hit ratio 100.0 % (without prefetch at most 99.8 %)"),
        (0.75004, 0.75003, "hit ratio 75.0 % (optimal 75.0 %)"),
    ],
)
def test_a_hit_ratio_above_the_optimum_is_explained(ratio: float | None, optimal: float | None, text: str) -> None:
    assert hit_ratio_text(ratio, optimal) == text


def test_error_lines_say_what_to_do() -> None:
    assert error_line(StreamInterruptedError("it\nended\x1b[31m")) == "it ended␛[31m"
    assert "greenroom serve" in error_line(APIConnectionError("nobody there"))
    assert "greenroom serve" not in error_line(APITimeoutError("slow"))
    no_key = AuthenticationError(401, ErrorBody("No API key was sent."), {})
    assert error_line(no_key) == "No API key was sent; set --api-key, or --admin-api-key for experts"


def parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_server_arguments(parser)
    return parser.parse_args(words)


def test_flags_take_precedence_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GREENROOM_URL", "GREENROOM_API_KEY", "GREENROOM_ADMIN_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    assert server_from(parse()) == ("http://127.0.0.1:8000", {"api_key": None, "admin_api_key": None})
    monkeypatch.setenv("GREENROOM_URL", "https://there/")
    monkeypatch.setenv("GREENROOM_API_KEY", "user")
    monkeypatch.setenv("GREENROOM_ADMIN_API_KEY", "admin")
    assert server_from(parse()) == ("https://there", {"api_key": "user", "admin_api_key": "admin"})
    assert server_from(parse("--url", "here:1", "--api-key", "mine")) == (
        "http://here:1",
        {"api_key": "mine", "admin_api_key": "admin"},
    )
