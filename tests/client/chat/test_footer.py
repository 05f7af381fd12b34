"""The line below an answer."""

from __future__ import annotations

from client.chat.footer import Timing, footer
from client.generation import ExpertUsage, Usage


def test_rates_exclude_the_first_token() -> None:
    timing = Timing(sent=10.0)
    for now in (10.5, 11.0, 12.5):
        timing.count(now)
    usage = Usage(3, 41, 44, ExpertUsage(1640, 20, 3 << 20, 0.25))
    assert footer(usage, timing) == [
        "41 tokens",
        "20.0 tokens/s",
        "first token after 0.50 s",
        "20 of 1,640 expert requests missed",
        "3.0 MiB read",
        "0.25 s stalled",
    ]


def test_one_token_has_no_rate() -> None:
    timing = Timing(sent=1.0)
    timing.count(1.25)
    assert footer(Usage(3, 1, 4), timing) == ["1 token", "first token after 0.25 s"]


def test_an_answer_without_usage_is_counted_by_its_chunks() -> None:
    timing = Timing(sent=1.0)
    timing.count(2.0)
    timing.count(2.5)
    assert footer(None, timing) == ["about 2 tokens", "2.0 tokens/s", "first token after 1.00 s"]
    assert footer(None, Timing(sent=1.0)) == ["about 0 tokens"]
