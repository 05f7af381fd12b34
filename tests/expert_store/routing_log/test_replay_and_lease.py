"""A replay and the store itself have the same hits on the same routing."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expert_store import PHASES, ExpertCatalog, ExpertStore, Phase, RoutingLogHeader
from expert_store.io.reader import ReadJob
from expert_store.policies import POLICIES
from expert_store.routing_log.log import LoggedLease, RoutingLog
from expert_store.routing_log.replay import replay
from tests.expert_store.lease_rows import one_row_each
from tests.expert_store.records import LAYOUT, make_records

pytestmark = pytest.mark.slow

LAYERS, EXPERTS = 3, 6
HEADER = RoutingLogHeader(
    "tiny", dict.fromkeys(range(LAYERS), EXPERTS), dict.fromkeys(range(LAYERS), LAYOUT.slot_bytes)
)


def experts_of(bits: int) -> tuple[int, ...]:
    return tuple(expert for expert in range(EXPERTS) if bits >> expert & 1)


leases = st.builds(
    lambda layer, experts, phase: LoggedLease(layer, experts, *phase),
    st.integers(0, LAYERS - 1),
    st.integers(1, 2**EXPERTS - 1).map(experts_of),
    st.sampled_from([("prefill", False), ("prefill", True), ("decode", False)]),
)


class SteppedReads:
    """Ends the reads of a store one by one, each when a lease waits."""

    def __init__(self, store: ExpertStore):
        self._jobs: deque[ReadJob] = deque()
        store._state.reader.submit = self._jobs.append  # type: ignore[method-assign]
        store._state.lock.wait = self._end_one  # type: ignore[method-assign,assignment]

    def _end_one(self, *_: Any) -> bool:
        self._jobs.popleft().done(None)
        return True


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> ExpertCatalog:
    folder: Path = tmp_path_factory.mktemp("records")
    return make_records(folder, LAYERS, EXPERTS)


def hits_of_store(catalog: ExpertCatalog, routing: list[LoggedLease], policy: str, num_slots: int) -> dict[Phase, int]:
    store = ExpertStore(catalog, num_slots * LAYOUT.slot_bytes, policy=policy, num_readers=1)
    try:
        SteppedReads(store)
        for layer, experts, phase, is_passing in routing:
            rows = one_row_each(layer, experts)
            with store.lease_passing(rows) if is_passing else store.lease(rows, phase) as lease:
                assert len(list(lease)) == len(experts)
        lookups = store.statistics().lookups
        assert sum(lookups.values()) == sum(len(lease.experts) for lease in routing)
        store.check_integrity()
        return {phase: lookups["host", phase] for phase in PHASES}
    finally:
        store.close()


@settings(max_examples=50, deadline=None)
@given(
    routing=st.lists(leases, min_size=40, max_size=60),
    policy=st.sampled_from(POLICIES),
    num_slots=st.integers(1, LAYERS * EXPERTS - 1),
)
def test_a_replay_has_the_hits_of_the_store(
    catalog: ExpertCatalog, routing: list[LoggedLease], policy: str, num_slots: int
) -> None:
    replayed = replay(RoutingLog(HEADER, routing), policy, num_slots)
    assert hits_of_store(catalog, routing, policy, num_slots) == {phase: replayed.hits[phase] for phase in PHASES}
