"""Spans of a trace, and where they go."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

Value = str | bool | int | float | Sequence[str]


@dataclass
class Span:
    """Something that took time, with what took time within it."""

    name: str
    started_at: float  # by ``time.monotonic``, as is the next
    ended_at: float
    attributes: dict[str, Value]
    children: list["Span"] = field(default_factory=list)
    is_failed: bool = False


class Tracer(Protocol):
    """Where spans go."""

    def record(self, span: Span, headers: Mapping[str, str]) -> str | None:
        """Hand out a span that has ended, and all within it; quick.

        Args:
            headers: of its request, which may name the span that it is a part of (W3C's trace context).

        Returns:
            The id of the trace, in hexadecimal digits; None if there is none, for tracing is turned off.

        """
