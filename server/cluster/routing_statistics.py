"""The state of a replica as plain data, which Serve's controller passes from the replica to the router."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from server.cluster.scoring import ReplicaState


def statistics_of(state: ReplicaState) -> dict[str, Any]:
    """Return a state without its blocks; a bit tells of each expert whether it is resident."""
    resident = state.resident
    return {
        "number": state.number,
        "num_requests": state.num_requests,
        "weights": [*state.weights],
        "shape": None if resident is None else resident.shape,
        "resident": b"" if resident is None else np.packbits(resident).tobytes(),
    }


def state_of(statistics: Mapping[str, Any]) -> ReplicaState:
    """Return the state that ``statistics_of`` was given, without its blocks."""
    shape, resident = statistics["shape"], None
    if shape is not None:
        bits = np.unpackbits(np.frombuffer(statistics["resident"], dtype=np.uint8), count=shape[0] * shape[1])
        resident = bits.reshape(shape).astype(np.bool_)
    return ReplicaState(
        num_requests=int(statistics["num_requests"]),
        weights=frozenset(statistics["weights"]),
        resident=resident,
        number=int(statistics["number"]),
    )
