"""Logging to standard error, as text or JSON. Quoted input can't forge a line of the log, and shows no secrets."""

from __future__ import annotations

import json
import logging
import math
import re
import sys
import time
from datetime import UTC, datetime
from typing import Any

from server.observability.log_writer import BackgroundHandler, write_above_progress_bars, write_to_standard_error
from server.redaction import redact, redact_all

AUDIT = "greenroom.audit"  # a logger whose lines are written at every level
VERBOSE_LOGGERS = ("httpx", "httpx2")  # log a line for every request to the model hub

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_PLAIN = re.compile(r"[\w./:@+-]+", re.ASCII)


class RateLimitFilter(logging.Filter):
    """Passes each message format at most once in ``seconds``, for loggers that repeat an error at every attempt."""

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


class RewordingFilter(logging.Filter):
    """Replaces the message of each record, for loggers whose own messages quote secrets."""

    def __init__(self, message: str) -> None:
        super().__init__()
        self._message = message

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = self._message, ()
        return True


class QueryFilter(logging.Filter):
    """Cuts the query off the paths of uvicorn's access log: some clients send keys there."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(each.partition("?")[0] if isinstance(each, str) else each for each in record.args)
        return True


class TextFormatter(logging.Formatter):
    """Formats a record as text: the message, then the fields logged as ``extra={"fields": {...}}``."""

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  logging's own
        fields = "".join(f" {name}={_quoted(value)}" for name, value in _fields_of(record).items())
        record.message = _without_control(record.message) + fields
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:  # noqa: N802
        """Indent a traceback, so that no line of it looks like a line of the log."""
        lines = super().formatException(ei).split("\n")
        return "\n".join(f"    {_without_control(line)}" for line in lines)


class JsonFormatter(logging.Formatter):
    """Formats a record and its fields as one JSON object."""

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
        return json.dumps(redact_all(line))


TEXT = TextFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
COMMAND = TextFormatter("greenroom: %(message)s")  # for commands other than serve
FORMATTERS = {"text": TEXT, "json": JsonFormatter()}


def set_up_logging(level: str, form: logging.Formatter = TEXT) -> None:
    """Set up logging of this process. No thread waits for the reader of standard error.

    Args:
        level: lowest level that is written, such as "info".
        form: formatter of the lines.
    """
    handler = BackgroundHandler(write_above_progress_bars if sys.stderr.isatty() else write_to_standard_error)
    handler.setFormatter(form)
    logging.basicConfig(level=level.upper(), handlers=[handler])
    logging.captureWarnings(capture=True)  # Python would write them to standard error itself
    logging.getLogger(AUDIT).setLevel(logging.INFO)
    if level != "debug":
        for name in VERBOSE_LOGGERS:
            logging.getLogger(name).setLevel(logging.WARNING)


def num_dropped_lines() -> int:
    """Return how many lines of the log could not be written since the start."""
    handlers = logging.getLogger().handlers
    return sum(handler.num_dropped for handler in handlers if isinstance(handler, BackgroundHandler))


def _fields_of(record: logging.LogRecord) -> dict[str, Any]:
    fields: dict[str, Any] = getattr(record, "fields", {})
    return fields


def _quoted(value: Any) -> str:
    return value if isinstance(value, str) and _PLAIN.fullmatch(value) else json.dumps(value, separators=(",", ":"))


def _without_control(text: str) -> str:
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)
