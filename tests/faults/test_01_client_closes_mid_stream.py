"""A client closes during its stream: generation stops within one step, and its blocks are freed."""

from __future__ import annotations

import threading

from tests.server.live.conftest import FakeServer
from tests.server.live.requests import complete


def test_tokens_stop_within_one_step(live: FakeServer) -> None:
    steps = threading.Semaphore(3)
    live.rig.model.before_step = lambda: steps.acquire(timeout=30)
    with live.connect() as connection:
        connection.sendall(complete(b"going", max_tokens=500, stream=True))
        received = b""
        while received.count(b"data: ") < 3:
            received += connection.recv(1 << 16)
        num_steps = len(live.rig.model.steps)
    live.wait_until_left()
    steps.release(500)
    live.wait_until_idle()
    assert len(live.rig.model.steps) <= num_steps + 1
    assert live.engine.statistics.finished == {"abort": 1}
    assert live.engine.statistics.kv_cache_usage == 0
