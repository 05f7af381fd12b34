"""Items of a replica's stream: their pace, the experts of their tokens, and their times."""

from __future__ import annotations

import numpy as np
import pytest
from ray import cloudpickle

from server.cluster.outgoing import ExpertCounts, Pace, moved, since_submission
from server.cluster.wire import Answer
from server.engine.interface import FinishReason, PassTime, Stall, Timeline, TokenEvent, TokenLogprobs


def paced(num_tokens: int, num_streams: int, now: float = 0.105) -> float:
    """Return when the next item of a stream goes that sends its second one now, 0.105 s after its first."""
    times = iter([now - 0.105, now])
    pace = Pace(lambda: next(times))
    pace.seconds(1, num_streams)
    return now + pace.seconds(num_tokens, num_streams)


def test_tokens_that_take_long_go_one_by_one() -> None:
    assert paced(1, 8) == 0.105


def test_fast_tokens_of_one_stream_come_together_for_a_short_time() -> None:
    assert paced(20, 1) == pytest.approx(0.12)


def test_fast_tokens_of_many_streams_come_together_for_longer_up_to_a_limit() -> None:
    assert paced(20, 4, 0.165) == pytest.approx(0.2)
    assert paced(20, 1000, 0.165) == pytest.approx(0.2)


def test_items_of_streams_that_began_at_different_times_go_at_the_same_time() -> None:
    assert paced(20, 8, 0.165) == pytest.approx(paced(20, 8, 0.235))


def test_the_signature_counts_the_experts_of_all_items() -> None:
    counts = ExpertCounts((2, 4))
    counts.note([TokenEvent("a", 1, experts=np.array([[0, 1], [3, -1]], dtype=np.int16)), TokenEvent("b", 2)])
    counts.note([TokenEvent("c", 3, experts=np.array([[0, 2], [3, 2]], dtype=np.int16))])
    signature = counts.signature()
    assert signature is not None
    assert signature.shares == pytest.approx(np.array([[0.5, 0.25, 0.25, 0], [0, 0, 1 / 3, 2 / 3]]))


def test_a_request_without_experts_has_no_signature() -> None:
    counts = ExpertCounts((2, 4))
    counts.note([TokenEvent("a", 1)])
    assert counts.signature() is None


@pytest.mark.parametrize(
    "event",
    [
        TokenEvent("a", 1, token_id=7),
        TokenEvent("a", 1, FinishReason.STOP, stop="a"),
        TokenEvent("a", 1, logprobs=(TokenLogprobs(7, -0.5),)),
        TokenEvent("a", 1, adapters={"pies": 1.0}),
    ],
)
def test_an_event_is_the_same_after_its_way(event: TokenEvent) -> None:
    answer = cloudpickle.loads(cloudpickle.dumps(Answer("a", [event])))
    assert answer == Answer("a", [event])


def test_experts_of_a_token_are_the_same_after_their_way() -> None:
    event = TokenEvent("a", 1, experts=np.array([[1, 2]], dtype=np.int16))
    (found,) = cloudpickle.loads(cloudpickle.dumps(Answer("a", [event]))).events
    assert found.experts.tolist() == [[1, 2]]


def test_times_of_one_clock_are_those_of_another_one_moved() -> None:
    mine = Timeline(
        100.0, 101.0, None, passes=[PassTime(101.0, 103.0, 64, 1)], stalls=[Stall(3, 102.0, 102.5, 0.5, 1, 10)]
    )
    told = since_submission(mine)
    assert (told.submitted_at, told.started_at, told.first_token_at) == (0.0, 1.0, None)
    assert [(each.started_at, each.ended_at) for each in told.passes] == [(1.0, 3.0)]
    assert [(stall.started_at, stall.ended_at) for stall in told.stalls] == [(2.0, 2.5)]
    assert moved(told, 100.0) == mine
