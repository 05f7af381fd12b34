"""Hubs that answer with nonsense, or without an end."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from server.http_client import reach
from server.model.checkpoint.download import download
from server.model.checkpoint.hub_listing import list_upload
from server.model.errors import ModelError
from tests.e2e.hub import use_hub
from tests.hostile_server import BOMB, Answer, Hostile, endless, hostile_server, whole

MODEL, COMMIT = "somebody/some-model", "0" * 40
FILE = {"rfilename": "model.safetensors", "size": 100}
ABOUT = {"id": MODEL, "sha": COMMIT, "siblings": [FILE]}

Start = Callable[[Answer], AbstractContextManager[Hostile]]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    """Start a hub, with an empty cache."""

    @contextmanager
    def start(answer: Answer) -> Iterator[Hostile]:
        with hostile_server(answer) as server:
            use_hub(monkeypatch, server.url, tmp_path)
            yield server

    return start


def about(value: Any) -> Answer:
    return whole("200 OK", value if isinstance(value, bytes) else json.dumps(value).encode())


@pytest.mark.parametrize(
    "answer",
    [
        about(b"{"),
        about(b"[" * 100_000),
        about(b"\xff"),
        about(None),
        about({**ABOUT, "siblings": [None]}),
        about({**ABOUT, "siblings": 5}),
        about({**ABOUT, "siblings": [{"rfilename": None}]}),
        about({**ABOUT, "siblings": [{**FILE, "size": "5"}]}),
        about({**ABOUT, "siblings": [{**FILE, "size": -5}]}),
        about({**ABOUT, "siblings": [{**FILE, "size": 1e400}]}),
        about({**ABOUT, "siblings": [{**FILE, "lfs": 5}]}),
        about({**ABOUT, "cardData": {"base_model": 5}}),
        about(json.dumps(ABOUT).replace("100", "1" * 5000).encode()),
        whole("400 Bad Request", b"[1]"),
        whole("403 Forbidden", b'{"errors": [5]}'),
    ],
)
def test_nonsense_is_an_error_that_names_the_hub(hub: Start, answer: Answer) -> None:
    with hub(answer) as server, pytest.raises(ModelError, match=server.url):
        list_upload(MODEL, None)


@pytest.mark.parametrize(
    "answer",
    [
        endless("200 OK"),
        endless("500 Oops"),
        whole("200 OK", BOMB, "Content-Encoding: gzip"),
        whole("400 Bad Request", BOMB, "Content-Encoding: gzip"),
        whole("302 Found", b"", "Location: /x"),
        whole("302 Found", b"", "Location: http://[::1"),
    ],
    ids=["endless", "endless 500", "gzip", "gzip 400", "loop", "location"],
)
def test_a_hub_whose_answer_is_given_up_counts_as_not_reached(hub: Start, answer: Answer) -> None:
    with hub(answer) as server:
        assert list_upload(MODEL, None) is None
        assert server.num_bytes < 24 << 20


def test_an_error_shows_no_secrets_of_an_answer(hub: Start) -> None:
    body = b'{"error": "no http://me:swordfish@host/x?X-Amz-Signature=swordfish"}'
    with hub(whole("418 Teapot", body)), pytest.raises(ModelError) as raised:
        download(MODEL, None)
    assert "swordfish" not in str(raised.value)


def test_a_public_hub_redirects_to_no_private_address(hub: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reach, "is_public", lambda address: address == "127.0.0.1")
    with hostile_server(about(ABOUT), "127.0.0.9") as inner, hub(whole("302 Found", b"", f"Location: {inner.url}/")):
        assert list_upload(MODEL, None) is None
        assert inner.heads == []
