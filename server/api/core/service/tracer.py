"""Spans, and the interface of the tracer that records them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

Value = str | bool | int | float | Sequence[str]


@dataclass
class Span:
    """An operation with a duration, and the operations within it."""

    name: str
    started_at: float  # by ``time.monotonic``, as ``ended_at``
    ended_at: float
    attributes: dict[str, Value]
    children: list["Span"] = field(default_factory=list)
    is_failed: bool = False


class Tracer(Protocol):
    """Records spans."""

    def record(self, span: Span, headers: Mapping[str, str]) -> str | None:
        """Record a finished span and its children; does not block.

        Args:
            headers: headers of the request, which may name the parent span (W3C Trace Context).

        Returns:
            The id of the trace in hexadecimal digits; None if the trace is not recorded.

        """
