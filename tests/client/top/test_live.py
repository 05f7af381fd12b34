"""The live view: reconnects, permanent errors, keys."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable

import httpx
import pytest
from rich.console import Console

from client import APIConnectionError, AsyncClient, GreenroomError, PermissionDeniedError
from client.frames import HOST
from client.retries import Retries
from client.top.live import follow
from client.top.monitor import Monitor
from tests.client.bodies import ADAPTERS, REFUSAL, REQUEST, REQUESTS, SNAPSHOT, STATE, VARIANTS, event
from tests.client.scripted import ScriptedReply, ScriptedServer
from tests.client.terminal_session import terminal_session
from tests.client.top.frames import frame

pytestmark = pytest.mark.slow

UPDATE = {"residency": [], "tokens": [[4, 0, 7]], "pinned": None, "balance": None, **STATE, "num_requests_running": 9}
FRAMES = event(SNAPSHOT, "snapshot") + event(UPDATE, "update")

Handler = Callable[[httpx.Request], httpx.Response]


class EnoughError(Exception):
    """Ends the scenario of a test."""


def shown(monitor: Monitor) -> str:
    console = Console(width=200, color_system=None)
    with console.capture() as capture:
        console.print(monitor.render(20))
    return capture.get()


def titles(handler: Handler, num_sleeps: int) -> list[str]:
    """Return the first line of every drawing, until ``num_sleeps`` sleeps."""
    monitor, seen, sleeps = Monitor("there"), [], []

    def redraw() -> None:
        seen.append(shown(monitor).splitlines()[0].strip())

    async def sleep(seconds: float) -> None:
        sleeps.append(seconds)
        if len(sleeps) == num_sleeps:
            raise EnoughError

    async def scenario() -> None:
        transport = httpx.MockTransport(handler)
        async with AsyncClient(transport=transport, retries=Retries(0)) as client:
            await follow(client, 0.5, monitor, redraw, sleep)

    with pytest.raises(EnoughError):
        asyncio.run(scenario())
    return seen


def script(*answers: httpx.Response | Exception) -> Handler:
    left = list(answers)

    def handle(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/requests":
            return httpx.Response(200, json={"data": [REQUEST]})
        answer = left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return handle


def frames(model: str = "tiny") -> httpx.Response:
    return httpx.Response(200, content=event(SNAPSHOT | {"model": model}, "snapshot") + event(UPDATE, "update"))


def test_it_reconnects_and_shows_the_reason_meanwhile() -> None:
    loading = httpx.Response(503, json={"error": {"message": "The model is still being loaded."}})
    handler = script(frames(), httpx.ConnectError("refused"), loading, frames("other"))
    assert titles(handler, 4) == [
        "tiny at there",
        "tiny at there",
        "tiny at there · reconnecting: the connection ended before the stream did",
        "tiny at there · reconnecting: no server responds at http://127.0.0.1:8000: refused",
        "tiny at there · reconnecting: The model is still being loaded.",
        "other at there",
        "other at there",
        "other at there · reconnecting: the connection ended before the stream did",
    ]


def test_it_waits_while_the_model_is_loading() -> None:
    loading = httpx.Response(503, json={"error": {"message": "The model is still being loaded."}})
    assert titles(script(loading, frames()), 2)[:2] == ["The model is still being loaded.", "tiny at there"]


@pytest.mark.parametrize(
    ("answers", "error"),
    [
        ([httpx.ConnectError("refused")], APIConnectionError),
        ([httpx.Response(403, json=REFUSAL)], PermissionDeniedError),
        ([frames(), httpx.Response(403, json=REFUSAL)], PermissionDeniedError),
    ],
)
def test_permanent_errors_end_it(answers: list[httpx.Response | Exception], error: type[GreenroomError]) -> None:
    with pytest.raises(error):
        titles(script(*answers), 9)


def test_pausing_keeps_the_frame() -> None:
    monitor = Monitor("there")
    monitor.add_frame(frame(((HOST,),), num_requests_running=1), 0.0)
    monitor.toggle_pause()
    monitor.add_frame(frame(((HOST,),), num_requests_running=2), 1.0)
    assert "there · paused" in shown(monitor)
    assert "1 running" in shown(monitor)
    monitor.toggle_pause()
    assert "paused" not in shown(monitor)
    assert "2 running" in shown(monitor)


def test_q_ends_the_live_view(scripted: ScriptedServer) -> None:
    ends = threading.Event()
    scripted.replies = {
        "/v1/requests": [ScriptedReply(json.dumps(REQUESTS).encode())] * 4,
        "/v1/experts/stream": [
            ScriptedReply(FRAMES, is_stream=True, until=ends),
            ScriptedReply(json.dumps(REFUSAL).encode(), status=503),
            ScriptedReply(FRAMES.replace(b"tiny", b"other"), is_stream=True, until=threading.Event()),
        ],
    }
    with terminal_session("top", "--url", scripted.url, environment={}) as session:
        session.wait_for(f"tiny at {scripted.url} · p pauses, q quits")
        session.wait_for("9 running")
        session.type("p")
        session.wait_for(" · paused")
        session.type("p")
        session.wait_for("p pauses, q quits")
        ends.set()
        session.wait_for("reconnecting: the connection ended before the stream did")
        session.wait_for(f"other at {scripted.url} · p pauses, q quits")
        session.type("q")
        assert session.wait_for_end() == 0
        assert "\x1b[?1049l" in session.written  # back from the alternate screen


def test_v_switches_to_variants_and_adapters_and_back(scripted: ScriptedServer) -> None:
    begin = threading.Event()
    scripted.replies = {
        "/v1/requests": [ScriptedReply(json.dumps(REQUESTS).encode())],
        "/v1/experts/variants": [ScriptedReply(json.dumps(VARIANTS).encode())],
        "/v1/adapters": [ScriptedReply(json.dumps(ADAPTERS).encode())],
        "/v1/experts/stream": [
            ScriptedReply(FRAMES, is_stream=True, until=begin),
            ScriptedReply(FRAMES, is_stream=True, until=threading.Event()),
        ],
    }
    with terminal_session("top", "--url", scripted.url, environment={}) as session:
        session.wait_for("v shows variants and adapters")
        session.type("v")
        session.wait_for("Waiting for the list of variants and adapters.")
        begin.set()  # the next frame brings it
        session.wait_for("tiny:law")
        session.type("v")
        session.wait_for("chat 5a0c1")
        session.type("q")
        assert session.wait_for_end() == 0


def test_ctrl_c_ends_it_and_restores_the_terminal(scripted: ScriptedServer) -> None:
    scripted.replies = {
        "/v1/requests": [ScriptedReply(json.dumps(REQUESTS).encode())] * 2,
        "/v1/experts/stream": [ScriptedReply(FRAMES, is_stream=True, until=threading.Event())],
    }
    with terminal_session("top", "--url", scripted.url, environment={}) as session:
        session.wait_for("9 running")
        session.type("\x03")
        assert session.wait_for_end() == 0
        assert "\x1b[?1049l" in session.written
