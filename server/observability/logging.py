"""The log, on standard error: lines of text, or of JSON; whoever is quoted in one can not begin another."""

from __future__ import annotations

import json
import logging
import math
import re
import sys
import time
from datetime import UTC, datetime
from typing import Any, TextIO

from tqdm import tqdm

CHATTERERS = ("httpx", "httpx2")  # a line for every request that looks a model up

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_PLAIN = re.compile(r"[\w./:@+-]+", re.ASCII)


class BesideBars(logging.StreamHandler[TextIO]):
    """Lines above whatever bars are shown."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), self.stream)


class Seldom(logging.Filter):
    """Lets each message pass once in a while, whatever its values, for a logger that complains at every attempt."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._seconds = seconds
        self._passed_at: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        message, now = str(record.msg), time.monotonic()
        if now - self._passed_at.get(message, -math.inf) < self._seconds:
            return False
        self._passed_at[message] = now
        return True


class TextLines(logging.Formatter):
    """A line of text: the message, then the fields that were logged as ``extra={"fields": {...}}``."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  logging's own
        fields = "".join(f" {name}={_told(value)}" for name, value in _fields_of(record).items())
        record.message = _without_control(record.message) + fields
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:  # noqa: N802
        """Indented, so that no line of it looks like one of the log."""
        lines = super().formatException(ei).split("\n")
        return "\n".join(f"    {_without_control(line)}" for line in lines)


class JsonLines(logging.Formatter):
    """The same as one JSON object."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "timestamp": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_fields_of(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


TEXT = TextLines("%(asctime)s %(levelname)s %(name)s: %(message)s")
COMMAND = TextLines("greenroom: %(message)s")  # of a command that ends by itself
FORMS = {"text": TEXT, "json": JsonLines()}


def set_up_logging(level: str, form: logging.Formatter = TEXT) -> None:
    """Begin the log of this process.

    Args:
        level: of the least that is written, as "info".
        form: of its lines.
    """
    handler = BesideBars() if sys.stderr.isatty() else logging.StreamHandler()
    handler.setFormatter(form)
    logging.basicConfig(level=level.upper(), handlers=[handler])
    if level != "debug":
        for name in CHATTERERS:
            logging.getLogger(name).setLevel(logging.WARNING)


def _fields_of(record: logging.LogRecord) -> dict[str, Any]:
    fields: dict[str, Any] = getattr(record, "fields", {})
    return fields


def _told(value: Any) -> str:
    return value if isinstance(value, str) and _PLAIN.fullmatch(value) else json.dumps(value, separators=(",", ":"))


def _without_control(text: str) -> str:
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)
