"""The model fails after the first token: the stream has an error chunk, then its end; others are served."""

from __future__ import annotations

import json

from tests.server.engine.fakes import continuation
from tests.server.live.conftest import FakeServer
from tests.server.live.requests import ask, complete

SECRET = "/srv/models/private layout"


def test_the_stream_ends_with_an_error_chunk_and_others_are_served(live: FakeServer) -> None:
    def fail_once() -> None:
        if len(live.rig.model.steps) == 5:
            live.rig.model.before_step = lambda: None
            raise RuntimeError(SECRET)

    live.rig.model.before_step = fail_once
    answer = ask(live.port, complete(b"blamed", max_tokens=50, stream=True)).decode()
    events = [line.removeprefix("data: ") for line in answer.splitlines() if line.startswith("data: ")]
    error = json.loads(events[-2])["error"]
    assert error["type"] == "server_error"
    assert error["message"] == "the model failed to compute this request; see the log"
    assert events[-1] == "[DONE]"
    assert answer.count('"text":') == 5
    assert SECRET not in answer
    other = json.loads(ask(live.port, complete(b"other", max_tokens=5)).partition(b"\r\n\r\n")[2])
    assert other["choices"][0]["text"] == continuation(b"other", 5)
