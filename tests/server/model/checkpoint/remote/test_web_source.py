"""Files of a web server as sources, and the failures of servers."""

from __future__ import annotations

import base64
import socket
import ssl
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from expert_store.errors import (
    ShortReadError,
    SourceChangedError,
    SourceError,
    SourceGoneError,
    SourceUnreadableError,
)
from expert_store.sources.base import Piece
from server.model.checkpoint.remote import retries, web_source
from server.model.checkpoint.remote.web_client import WebClient
from server.model.checkpoint.remote.web_source import OpenWebSource, WebSource
from tests.needs import need
from tests.web_server import Fault, FileServer, cut_after, file_server, status, with_headers

CONTENT = np.random.default_rng(0).integers(0, 256, 300_000, np.uint8)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FileServer]:
    (tmp_path / "weights").write_bytes(CONTENT.tobytes())
    with file_server(tmp_path) as found:
        yield found


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Iterator[WebClient]:
    monkeypatch.setattr(retries, "FIRST_WAIT_SECONDS", 0.001)
    found = WebClient()
    yield found
    found.close()


@pytest.fixture
def opened(server: FileServer, client: WebClient) -> OpenWebSource:
    return WebSource(f"{server.url}/weights", client).open()


def read(opened: OpenWebSource, *extents: tuple[int, int]) -> list[np.ndarray]:
    pieces = [Piece(offset, np.zeros(nbytes, np.uint8)) for offset, nbytes in extents]
    opened.read(pieces)
    return [piece.target for piece in pieces]


def test_pieces_are_read_and_those_that_adjoin_in_one_request(server: FileServer, opened: OpenWebSource) -> None:
    before = len(server.requests)
    extents = [(5, 100), (105, 50), (250_000, 1000), (7, 3), (0, 0)]
    for (offset, nbytes), found in zip(extents, read(opened, *extents), strict=True):
        assert np.array_equal(found, CONTENT[offset : offset + nbytes])
    assert sorted(asked for _, asked in server.requests[before:]) == ["bytes=250000-250999", "bytes=5-154"]


def test_large_reads_are_split_into_parts(
    server: FileServer, opened: OpenWebSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web_source, "PART_BYTES", 100_000)
    before = len(server.requests)
    (found,) = read(opened, (0, len(CONTENT)))
    assert np.array_equal(found, CONTENT)
    assert len(server.requests) - before == 3


def test_the_identity_has_the_size_and_the_version(opened: OpenWebSource) -> None:
    assert opened.identity.nbytes == len(CONTENT)
    assert opened.identity.version[1] == '"1"'


@pytest.mark.parametrize(
    "faults",
    [
        [status(503)],
        [status(429, {"Retry-After": "0"}), status(500)],
        [cut_after(10)],
        [cut_after(0), cut_after(1000), cut_after(5000)],
        [with_headers(Content_Range="bytes 1-999/300000")],
    ],
    ids=["503", "429 and 500", "cut", "cut often", "wrong range"],
)
def test_a_passing_failure_is_retried(server: FileServer, opened: OpenWebSource, faults: list[Fault]) -> None:
    server.faults.extend(faults)
    (found,) = read(opened, (100, 20_000))
    assert np.array_equal(found, CONTENT[100:20_100])
    assert not server.faults


def test_a_failure_that_stays_is_named_with_the_answer(server: FileServer, opened: OpenWebSource) -> None:
    server.faults.extend([status(503)] * 20)
    with pytest.raises(
        SourceUnreadableError, match=r"cannot read http://.*/weights: the server answers 503: busy, try"
    ):
        read(opened, (0, 10))


def test_a_file_that_is_not_there_is_gone(server: FileServer, client: WebClient) -> None:
    with pytest.raises(SourceGoneError, match="other: the server answers 404"):
        WebSource(f"{server.url}/other", client).open()


@pytest.mark.parametrize("change", [{"ETag": '"2"'}, {"Content_Range": "bytes 0-9/300001"}], ids=["version", "size"])
def test_a_file_that_was_changed_is_refused_from_then_on(
    server: FileServer, opened: OpenWebSource, change: dict[str, str]
) -> None:
    server.faults.append(with_headers(**change))
    assert not opened.has_changed()
    with pytest.raises(SourceChangedError, match="was changed on the server while it is served"):
        read(opened, (0, 10))
    assert opened.has_changed()


def test_a_file_that_was_cut_short_is_refused(server: FileServer, opened: OpenWebSource) -> None:
    (server.folder / "weights").write_bytes(CONTENT[:1000].tobytes())
    with pytest.raises(SourceChangedError):
        read(opened, (500, 5000))


def test_a_server_without_ranges_is_refused(server: FileServer, client: WebClient) -> None:
    server.faults.append(status(200))
    with pytest.raises(SourceUnreadableError, match="sends whole files only; use one that answers requests with Range"):
        WebSource(f"{server.url}/weights", client).open()


def test_a_link_is_asked_for_once_and_again_when_it_has_expired(server: FileServer, client: WebClient) -> None:
    server.links = True
    opened = WebSource(f"{server.url}/weights", client).open()
    read(opened, (0, 10), (100_000, 10))
    assert [path for path, _ in server.requests].count("/weights") == 1
    server.valid_link = 1
    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(lambda n: read(opened, (n, 10))[0], range(8)):
            assert len(found) == 10
    assert [path for path, _ in server.requests].count("/weights") == 2


def test_a_link_that_stays_refused_is_an_error_with_the_answer(server: FileServer, client: WebClient) -> None:
    server.links = True
    opened = WebSource(f"{server.url}/weights", client).open()
    server.faults.extend([status(403), status(403), status(403)])
    with pytest.raises(SourceUnreadableError, match="the server answers 403: busy, try later"):
        read(opened, (0, 10))


def test_user_and_password_are_sent_and_in_no_message(server: FileServer, client: WebClient) -> None:
    server.password = base64.b64encode(b"me:secret").decode()
    url = server.url.replace("//", "//me:secret@")
    source = WebSource(f"{url}/weights", client)
    assert len(read(source.open(), (0, 10))[0]) == 10
    assert "secret" not in source.name + repr(source) + repr(source.open().identity)
    with pytest.raises(SourceUnreadableError, match="answers 401: who are you") as refused:
        WebSource(f"{server.url}/weights", client).open()
    assert "secret" not in str(refused.value)


def test_a_server_that_does_not_answer_is_named(client: WebClient) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    with pytest.raises(SourceError, match=rf"http://127.0.0.1:{port}/weights: the connection failed"):
        WebSource(f"http://127.0.0.1:{port}/weights", client).open()


def test_a_host_without_an_address_is_named(client: WebClient) -> None:
    with pytest.raises(SourceError, match=r"http://nowhere\.invalid/weights: the connection failed"):
        WebSource("http://nowhere.invalid/weights", client).open()


def test_a_certificate_that_nobody_vouches_for_is_refused_at_once(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need("openssl")
    files = ["-keyout", str(tmp_path / "key"), "-out", str(tmp_path / "certificate")]
    subject = ["-subj", "/CN=127.0.0.1", "-newkey", "rsa:2048", "-nodes", "-x509"]
    subprocess.run(["openssl", "req", *subject, *files], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "certificate", tmp_path / "key")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    monkeypatch.setattr(retries, "FIRST_WAIT_SECONDS", 1000.0)
    client = WebClient()
    with pytest.raises(SourceUnreadableError, match="the server's certificate is not valid"):
        WebSource(server.url.replace("http", "https") + "/weights", client).open()
    client.close()


def test_an_empty_file_has_no_bytes(server: FileServer, client: WebClient) -> None:
    (server.folder / "empty").write_bytes(b"")
    opened = WebSource(f"{server.url}/empty", client).open()
    assert opened.identity.nbytes == 0
    with pytest.raises(ShortReadError):
        read(opened, (0, 1))


def test_retries_wait_as_the_server_asks() -> None:
    assert retries.wait_before_retry(1, {"retry-after": "7"}) == 7
    assert retries.wait_before_retry(1, {"retry-after": "Thu, 01 Jan 1970 00:01:40 GMT"}, now=70) == 30
    assert retries.wait_before_retry(1, {"ratelimit": '"resolvers";r=0;t=55'}) == 55
    assert retries.wait_before_retry(1, {"retry-after": "9999"}) == retries.MAX_WAIT_SECONDS
    assert retries.wait_before_retry(3, {}, lambda: 1.0) == 4 * retries.wait_before_retry(1, {}, lambda: 1.0)


@pytest.mark.parametrize(
    "asked",
    [
        "soon",
        "²",
        "٣",
        "-1",
        "nan",
        "1e3",
        "Mon, 01 Jan 2020 00:00:00 +99999999999999999999",
        "Mon, 1 Jan " + "9" * 5000,
    ],
)
@pytest.mark.parametrize("header", ["retry-after", "ratelimit-reset"])
def test_a_wait_that_is_none_counts_as_not_asked_for(header: str, asked: str) -> None:
    assert retries.wait_before_retry(2, {header: asked}, lambda: 0.0) == retries.FIRST_WAIT_SECONDS
