"""Statistics of a replica that Serve's controller passes on."""

import pickle

import numpy as np
import pytest

from server.cluster.routing_statistics import state_of, statistics_of
from server.cluster.scoring import ReplicaState

RESIDENT = np.random.default_rng(0).random((3, 5)) < 0.5


@pytest.mark.parametrize("resident", [None, RESIDENT])
def test_a_state_comes_back_without_its_blocks(resident: np.ndarray | None) -> None:
    state = ReplicaState(7, frozenset([b"1"]), frozenset(["pies"]), resident, number=4)
    found = state_of(statistics_of(state))
    assert (found.num_requests, found.blocks, found.weights, found.number) == (7, frozenset(), frozenset(["pies"]), 4)
    assert found.resident is resident or np.array_equal(found.resident, RESIDENT)


def test_the_statistics_of_a_large_model_are_short() -> None:
    state = ReplicaState(7, frozenset(b"%d" % number for number in range(4096)), frozenset(), np.ones((48, 128), bool))
    assert len(pickle.dumps(statistics_of(state))) < 1500
