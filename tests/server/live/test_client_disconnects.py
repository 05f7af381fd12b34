"""Clients that disconnect at any moment, and clients that never read."""

from __future__ import annotations

import json
import random
import threading

import pytest

from tests.server.engine.fakes import continuation
from tests.server.live.conftest import FakeServer
from tests.server.live.requests import ask, complete

pytestmark = pytest.mark.slow

NUM_CLIENTS = 64


def leave_at_random(live: FakeServer, seed: int) -> None:
    """Send a request or a part of it, read a part of the answer or nothing, and close."""
    rng = random.Random(seed)
    prompt, n = rng.randbytes(rng.randint(1, 40)), rng.randint(1, 4)
    request = complete(prompt, max_tokens=rng.randint(1, 60), n=n, stream=rng.random() < 0.7)
    with live.connect() as connection:
        if rng.random() < 0.2:
            connection.sendall(request[: rng.randrange(len(request))])
            return
        connection.sendall(request)
        for _ in range(rng.choice([0, 0, 1, 3])):
            if not connection.recv(rng.randint(1, 500)):
                break


@pytest.mark.parametrize("seed", range(3))
def test_nothing_is_left_of_clients_that_leave_at_random_moments(live: FakeServer, seed: int) -> None:
    """Some disconnect during their request, some before the first token, some during the answer; n is 1 to 4."""
    threads = [
        threading.Thread(target=leave_at_random, args=(live, seed * NUM_CLIENTS + number))
        for number in range(NUM_CLIENTS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    live.wait_until_idle()
    assert live.rig.engine.statistics.finished["abort"] > 0
    assert live.rig.engine.statistics.kv_cache_usage == 0
    body = json.loads(ask(live.port, complete(b"who is left?", max_tokens=9)).partition(b"\r\n\r\n")[2])
    assert body["choices"][0]["text"] == continuation(b"who is left?", 9)
