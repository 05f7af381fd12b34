"""Shrinks a failing trace by delta debugging (Zeller and Hildebrandt, TSE 2002)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from tests.fuzz.trace import Event, Trace


def shrink(trace: Trace, fails: Callable[[Trace], bool], most_runs: int = 60) -> Trace:
    """Return the trace with as few of its events as still fail.

    An event keeps its time: the pauses of those that go are added to the next one's.

    Args:
        fails: plays a trace; traces that fail only at times make it less thorough.
        most_runs: of ``fails``.
    """
    events, num_parts, num_runs = trace.events, 2, 0
    while len(events) > 1 and num_runs < most_runs:
        size = -(-len(events) // num_parts)
        for first in range(0, len(events), size):
            rest = _without(events, first, first + size)
            num_runs += 1
            if rest and fails(replace(trace, events=rest)):
                events, num_parts = rest, max(2, num_parts - 1)
                break
            if num_runs == most_runs:
                break
        else:
            if size == 1:
                break
            num_parts = min(len(events), 2 * num_parts)
    return replace(trace, events=events)


def _without(events: list[Event], first: int, last: int) -> list[Event]:
    """Return the events but those from ``first`` to ``last`` (exclusive)."""
    rest = events[last:]
    if rest:
        pause = sum(event["after"] for event in events[first:last]) + rest[0]["after"]
        rest = [{**rest[0], "after": round(pause, 4)}, *rest[1:]]
    return [*events[:first], *rest]
