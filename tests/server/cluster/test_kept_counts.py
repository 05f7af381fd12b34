"""Counts of replicas, kept beyond their end."""

from __future__ import annotations

import pytest

from server.cluster.kept_counts import GONE_SECONDS, Counts, KeptCounts, MetricsPage


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def page(number: int, count: int) -> MetricsPage:
    text = f"# TYPE greenroom_prompt_tokens_total counter\ngreenroom_prompt_tokens_total {count}\n"
    return MetricsPage(number, text.encode())


def total(counts: Counts) -> int:
    pages = [*(each.text for each in counts.pages.values()), counts.sums]
    return sum(int(float(text.split()[-1])) for text in pages if text.strip())


def kept(keeper: KeptCounts) -> int:
    return total(keeper.exchange(Counts()))


def pass_time(keeper: KeptCounts, clock: Clock) -> Counts:
    """Exchange new pages of the replica "b" alone, which has counted 4, until all others are gone."""
    for number in range(2, 6):
        clock.now += GONE_SECONDS / 2
        keeper.exchange(Counts({"b": page(number, 4)}))
    return keeper.exchange(Counts())


def test_an_older_page_replaces_no_newer_one() -> None:
    keeper = KeptCounts()
    keeper.exchange(Counts({"a": page(2, 20)}))
    told = keeper.exchange(Counts({"a": page(1, 10)}))
    assert told.pages == {"a": page(2, 20)}


def test_the_caller_gets_no_page_that_it_has() -> None:
    keeper = KeptCounts()
    keeper.exchange(Counts({"a": page(1, 10)}))
    assert keeper.exchange(Counts({"b": page(1, 5)})).pages == {"a": page(1, 10)}


def test_a_replica_without_a_new_page_is_summed_up_and_its_page_counts_no_more() -> None:
    clock = Clock()
    keeper = KeptCounts(clock)
    keeper.exchange(Counts({"a": page(1, 10), "b": page(1, 3)}))
    told = pass_time(keeper, clock)
    assert told.gone == {"a"}
    keeper.exchange(Counts({"a": page(2, 11)}))
    assert kept(keeper) == 14


@pytest.mark.parametrize("leaves", [False, True])
def test_a_replica_is_not_gone_because_nobody_asked_for_long(leaves: bool) -> None:
    clock = Clock()
    keeper = KeptCounts(clock)
    keeper.exchange(Counts({"a": page(1, 10)}))
    if leaves:
        keeper.exchange(Counts({"b": page(1, 1)}))
    clock.now = 100 * GONE_SECONDS
    assert keeper.exchange(Counts({"c": page(1, 1)})).gone == frozenset()


def test_a_keeper_that_begins_anew_gets_what_a_caller_knows() -> None:
    clock = Clock()
    first = KeptCounts(clock)
    known = Counts({"a": page(1, 10), "b": page(1, 3)})
    first.exchange(known)
    known = known.joined(pass_time(first, clock))
    second = KeptCounts(clock)
    second.exchange(known)
    assert known.gone == {"a"}
    assert kept(second) == 14


@pytest.mark.parametrize("times", [1, 3])
def test_counts_that_come_twice_count_once(times: int) -> None:
    keeper, counts = KeptCounts(), Counts({"a": page(1, 10)}, frozenset({"old"}), page(0, 7).text)
    for _ in range(times):
        keeper.exchange(counts)
    assert kept(keeper) == 17


def test_callers_have_one_secret() -> None:
    keeper = KeptCounts()
    secrets = {keeper.exchange(Counts()).secret for _ in range(2)}
    assert len(secrets) == 1
    assert all(secrets)
