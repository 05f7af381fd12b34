"""A client closes while its request waits: the request never runs, and the queue continues."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor

from server.engine.text.codec import Codec
from tests.server.engine.fakes import Rig, continuation
from tests.server.live.conftest import serving_rig
from tests.server.live.requests import ask, complete


def test_it_never_runs_and_the_queue_continues(codec: Codec) -> None:
    steps = threading.Semaphore(1)
    rig = Rig(max_running=1, max_queued=2)
    rig.model.before_step = lambda: steps.acquire(timeout=30)
    with serving_rig(rig, codec) as live, ThreadPoolExecutor(2) as clients:
        first = clients.submit(ask, live.port, complete(b"first", max_tokens=5))
        while not rig.model.steps:
            threading.Event().wait(0.01)
        with live.connect() as queued:
            queued.sendall(complete(b"never run", max_tokens=5))
            while live.engine.num_submitted < 2:
                threading.Event().wait(0.01)
        while len(live.uvicorn.server_state.connections) > 1:
            threading.Event().wait(0.01)
        third = clients.submit(ask, live.port, complete(b"third", max_tokens=5))
        steps.release(1000)
        for client, prompt in ((first, b"first"), (third, b"third")):
            body = json.loads(client.result().partition(b"\r\n\r\n")[2])
            assert body["choices"][0]["text"] == continuation(prompt, 5)
        live.wait_until_idle()
        assert live.engine.statistics.finished == {"length": 2, "abort": 1}
        assert [len(b"never run")] not in rig.model.steps
