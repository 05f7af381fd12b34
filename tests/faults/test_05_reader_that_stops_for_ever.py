"""One reader stops for ever: 50 others are not affected."""

from __future__ import annotations

import json

import pytest

from tests.server.engine.fakes import continuation
from tests.server.live.conftest import FakeServer
from tests.server.live.requests import ask_together, complete

pytestmark = pytest.mark.slow


def test_fifty_others_are_answered(live: FakeServer) -> None:
    with live.connect() as stopped:
        stopped.sendall(complete(b"never read", max_tokens=5000, n=8, stream=True))
        stopped.recv(1)
        prompts = [b"other %d" % number for number in range(50)]
        answers = ask_together(live.port, [complete(prompt, max_tokens=40) for prompt in prompts])
    for prompt, answer in zip(prompts, answers, strict=True):
        body = json.loads(answer.partition(b"\r\n\r\n")[2])
        assert body["choices"][0]["text"] == continuation(prompt, 40)
