"""Format of log lines."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

import pytest

from server.observability.logging import FORMATTERS, RateLimitFilter

FORGED = "x\r\n2026-01-01 ERROR forged: \x1b[31m\x00\x85\u2028"


def record(message: str, *args: object, fields: dict[str, Any] | None = None, error: bool = False) -> logging.LogRecord:
    exc_info = sys.exc_info() if error else None
    made = logging.LogRecord("server.x", logging.INFO, "x.py", 1, message, args, exc_info)
    made.created = 1_700_000_000.25
    made.fields = fields or {}
    return made


def test_text_ends_with_its_fields() -> None:
    fields = {"route": "/v1/chat/completions", "seconds": 0.25, "finish_reasons": ["stop", None], "said": 'a "b" c'}
    line = FORMATTERS["text"].format(record("%d left", 3, fields=fields))
    assert line.partition(" INFO ")[2] == (
        "server.x: 3 left route=/v1/chat/completions seconds=0.25 "
        r'finish_reasons=["stop",null] said="a \"b\" c"'
    )


def test_json_is_one_object_with_the_same_fields() -> None:
    line = FORMATTERS["json"].format(record("%d left", 3, fields={"seconds": 0.25}))
    assert json.loads(line) == {
        "timestamp": "2023-11-14T22:13:20.250+00:00",
        "level": "info",
        "logger": "server.x",
        "message": "3 left",
        "seconds": 0.25,
    }


@pytest.mark.parametrize("form", ["text", "json"])
def test_quoted_input_forges_no_line(form: str) -> None:
    line = FORMATTERS[form].format(record("no model %s", FORGED, fields={"name": FORGED}))
    assert line.isprintable()


@pytest.mark.parametrize("form", ["text", "json"])
def test_secrets_are_in_no_part_of_a_line(form: str) -> None:
    """The libraries' own lines name addresses with passwords and signatures, and so do tracebacks."""
    url = "http://me:swordfish@host/a?X-Amz-Signature=swordfish"
    try:
        raise ValueError(url)  # noqa: TRY301
    except ValueError:
        made = record(
            'HTTP Request: GET %s "%s"', url, "HTTP/1.1 200", fields={"urls": [url], "of": {"a": url}}, error=True
        )
    line = FORMATTERS[form].format(made)
    assert "swordfish" not in line
    assert line.count("host/a?***") == 4
    assert form == "text" or json.loads(line)["urls"] == ["http://***@host/a?***"]


def fail() -> None:
    raise ValueError(FORGED)


def test_an_exception_is_indented_in_text_and_a_member_in_json() -> None:
    try:
        fail()
    except ValueError:
        text = FORMATTERS["text"].format(record("failed", error=True))
        member = json.loads(FORMATTERS["json"].format(record("failed", error=True)))["exception"]
    first, *others = text.split("\n")
    assert first.endswith("server.x: failed")
    assert all(line.startswith("    ") and line.isprintable() for line in others)
    assert member.startswith("Traceback")
    assert "ValueError: x" in member


def test_a_repeated_message_is_rate_limited() -> None:
    seldom, always = RateLimitFilter(3600.0), RateLimitFilter(0.0)
    records = record("attempt %d failed", 1), record("attempt %d failed", 2), record("given up")
    assert [seldom.filter(each) for each in records] == [True, False, True]
    assert [always.filter(each) for each in records] == [True, True, True]
