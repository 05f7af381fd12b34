"""Sessions of requests with limits of answers."""

from __future__ import annotations

import ssl
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import requests

from server.observability.bounded_session import bounded_session
from tests.hostile_server import BOMB, Answer, endless, hostile_server, whole
from tests.needs import need


@pytest.fixture
def session() -> Iterator[requests.Session]:
    with bounded_session() as session:
        yield session


def test_a_request_and_its_answer_arrive_as_they_are(session: requests.Session) -> None:
    with hostile_server(whole("201 Made", b"yes", "X-Tenant: law")) as server:
        found = session.post(f"{server.url}/a?b=1", data=b"", headers={"X-Key": "k"}, timeout=30)
    assert (found.status_code, found.reason, found.content, found.headers["x-tenant"]) == (201, "Made", b"yes", "law")
    head = server.heads[0].lower()
    assert head.startswith(b"post /a?b=1 http/1.1\r\n")
    assert b"\r\nx-key: k\r\n" in head
    assert head.count(b"\r\nhost:") == 1


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (endless("200 OK"), "the server sends more than 65536 bytes"),
        (whole("200 OK", BOMB, "Content-Encoding: gzip"), "for which nobody asked"),
        (endless("100 Continue", part=b"HTTP/1.1 100 Continue\r\n\r\n" * 100), "bytes of headers"),
    ],
    ids=["endless", "gzip", "100"],
)
def test_little_of_an_answer_is_read(session: requests.Session, answer: Answer, reason: str) -> None:
    with hostile_server(answer) as server:
        with pytest.raises(requests.ConnectionError, match=reason):
            session.post(server.url.replace("//", "//me:swordfish@"), timeout=30)
        assert server.num_bytes < 4 << 20


def test_an_error_of_the_session_shows_no_password(session: requests.Session) -> None:
    with pytest.raises(requests.ConnectionError) as raised:
        session.post("http://me:swordfish@127.0.0.1:9/?token=swordfish", timeout=30)
    assert "swordfish" not in str(raised.value)


def test_certificates_of_the_collector_and_the_client_are_used(session: requests.Session, tmp_path: Path) -> None:
    need("openssl")
    key, certificate = tmp_path / "key", tmp_path / "certificate"
    subject = [
        "-subj",
        "/CN=localhost",
        "-addext",
        "subjectAltName=IP:127.0.0.1",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-x509",
    ]
    subprocess.run(["openssl", "req", *subject, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    context.load_verify_locations(certificate)
    context.verify_mode = ssl.CERT_REQUIRED

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        options = {"timeout": 30, "verify": str(certificate), "cert": (str(certificate), str(key))}
        found = session.get(f"https://127.0.0.1:{server.server_port}/", **options)
        server.shutdown()
        thread.join()
    assert found.status_code == 200
