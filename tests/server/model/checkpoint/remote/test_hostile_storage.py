"""Object storage that sends more than it was asked for."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from expert_store.errors import SourceError
from expert_store.sources.base import Piece
from server.model.checkpoint.remote import bucket
from server.model.checkpoint.remote.bucket import BucketClient, BucketSource
from tests.hostile_server import Hostile, hostile_server


def endless_object(_: Hostile, head: bytes) -> Iterator[bytes]:
    """Answer GET with a range that does not end, and HEAD with its size."""
    told = 'ETag: "1"\r\nLast-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\n'
    if head.startswith(b"HEAD"):
        yield f"HTTP/1.1 200 OK\r\n{told}Content-Length: 1000\r\n\r\n".encode()
        return
    yield f"HTTP/1.1 206 Partial Content\r\n{told}Content-Range: bytes 0-99/1000\r\n".encode()
    yield b"Content-Length: 99999999999\r\n\r\n"
    while True:
        yield bytes(0x4000)


def test_little_of_an_endless_object_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket, "NUM_TRIES", 1)
    with hostile_server(endless_object) as server:
        variables = {"ENDPOINT_URL": server.url, "ALLOW_HTTP": "true", "ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b"}
        for name, value in {**variables, "REGION": "us-east-1"}.items():
            monkeypatch.setenv(f"AWS_{name}", value)
        client = BucketClient("s3://models")
        opened = BucketSource(client, "weights").open()
        with pytest.raises(SourceError, match="the storage sent more than was asked for"):
            opened.read([Piece(0, np.empty(100, np.uint8))])
        client.close()
        assert server.num_bytes < 16 << 20
