"""The line below an answer."""

from __future__ import annotations

from client.chat.footer import Timing, footer, routing_text
from client.generation import ExpertUsage, Routing, Usage


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


def test_bytes_from_elsewhere_are_told() -> None:
    usage = Usage(3, 41, 44, ExpertUsage(10, 2, 3 << 20, 0.25, 2 << 20))
    assert "3.0 MiB read, 2.0 MiB of it over the network" in footer(usage, Timing(sent=0.0))


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


def test_a_choice_for_the_request_names_the_model() -> None:
    assert routing_text(Routing("embedding", "law", "It is closest.", {"law": 0.9})) == "routed to law"


def test_choices_for_each_token_name_the_heaviest_adapters() -> None:
    weights = {"a": 0.03, "b": 0.6, "c": 0.1, "d": 0.25, "e": 0.015, "f": 0.005, "unused": 0.0}
    assert routing_text(Routing("arrow", "auto", "", weights=weights)) == (
        "routed by token to b 60 %, d 25 %, c 10 %, a 3 %, 2 more"
    )
    assert routing_text(Routing("arrow", "auto", "", weights={"a": 0.0})) == "routed by token"
