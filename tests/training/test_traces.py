"""The routing logs of the bundled model, and their recording."""

from __future__ import annotations

import pytest
import torch

from expert_store.routing_log.log import read_routing_log
from training.traces import DECODE_STEPS, END_TOKENS, FOLDER, LONGEST, Stream

NAMES = sorted(path.name for path in FOLDER.glob("*.jsonl.gz"))


@pytest.mark.parametrize("name", NAMES)
def test_every_log_is_complete_and_has_the_layers_in_order(name: str, caplog: pytest.LogCaptureFixture) -> None:
    trace = read_routing_log(FOLDER / name)
    assert not [record for record in caplog.records if record.name.startswith("expert_store")]
    assert dict(trace.header.layers) == dict.fromkeys(range(6), 16)
    assert [lease.layer for lease in trace.leases] == list(range(6)) * (len(trace.leases) // 6)
    assert sum(lease.phase == "decode" for lease in trace.leases) == 6 * DECODE_STEPS
    assert all(len(lease.experts) >= 2 for lease in trace.leases)


def test_there_are_two_logs_more_than_domains_and_all_are_small() -> None:
    assert len(NAMES) == 13
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 400_000


def test_a_given_continuation_is_followed_token_by_token() -> None:
    stream = Stream([5, 6, 7], [8, 9], torch.Generator())
    fed = []
    while stream.advance(torch.zeros(16)):
        fed.append(stream.new)
    assert fed == [[8], [9]]
    assert stream.num_cached == 5


def test_an_answer_ends_with_an_end_token_or_at_the_limit() -> None:
    sure = torch.full((16,), -1e9)
    sure[END_TOKENS[1]] = 0
    assert not Stream([5], None, torch.Generator()).advance(sure)
    never = torch.full((16,), -1e9)
    never[7] = 0
    stream = Stream([5], None, torch.Generator())
    while stream.advance(never):
        assert stream.new == [7]
    assert stream.num_cached == LONGEST
