"""A reader that is too slow: its unread events are bounded, and after a while its time is, too."""

from __future__ import annotations

import socket
import threading

import pytest

from server.engine.text.codec import Codec
from tests.server.engine.fakes import Rig
from tests.server.live.conftest import FakeServer, serving_rig
from tests.server.live.requests import complete

pytestmark = pytest.mark.slow

NUM_TOKENS = 4000  # events of some 150 bytes, far more than the two sockets hold


def connect_with_a_small_buffer(port: int) -> socket.socket:
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(("127.0.0.1", port))
    return connection


def a_server(codec: Codec, send_timeout: float):
    rig = Rig(num_blocks=4096, max_running=64, max_batched_tokens=256)
    return serving_rig(rig, codec, send_timeout, send_buffer_bytes=1 << 16)


def wait_until_ended(live: FakeServer) -> None:
    while not live.engine.statistics.finished:
        threading.Event().wait(0.01)


def test_its_request_is_cancelled_before_memory_grows(codec: Codec) -> None:
    with a_server(codec, send_timeout=600) as live, connect_with_a_small_buffer(live.port) as connection:
        connection.sendall(complete(b"much", max_tokens=NUM_TOKENS * 4, n=1, stream=True, logprobs=5))
        wait_until_ended(live)
        assert live.engine.statistics.finished == {"abort": 1}
        received = b""
        while more := connection.recv(1 << 16):
            received += more
        assert b"tokens of the reply were waiting to be read" in received
        assert received.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")


def test_its_connection_ends_after_a_while(codec: Codec) -> None:
    with a_server(codec, send_timeout=0.3) as live, connect_with_a_small_buffer(live.port) as connection:
        connection.sendall(complete(b"much", max_tokens=NUM_TOKENS * 4, stream=True, logprobs=5))
        wait_until_ended(live)
        assert live.engine.statistics.finished == {"abort": 1}
        live.wait_until_left()
