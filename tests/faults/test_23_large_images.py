"""Images of kilobytes that decode to hundreds of megabytes, from many clients at once."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.engine.interface import RequestMemory
from server.engine.text.codec import Codec
from server.model.checkpoint.folder_checkpoint import FolderCheckpoint
from server.model.multimodal.image_processor import MediaProcessor
from server.model.text.tokenizer import Tokenizer
from tests.server.engine.fakes import Rig
from tests.server.live.conftest import FakeServer, serving_rig
from tests.server.live.requests import ask, error_of, headers_of, post_bytes, status_of
from tests.server.model.multimodal.test_image_parity import save_model
from tests.vision import data_url, make_image, png


@pytest.fixture
def room() -> RequestMemory:
    return RequestMemory(lambda: 1 << 20, wait_seconds=0.0)


@pytest.fixture
def server(room: RequestMemory, tmp_path: Path) -> Iterator[FakeServer]:
    """A fake model with the tokenizer and the image processor of a real one."""
    folder = save_model("qwen3_vl_moe", tmp_path)
    codec = Codec(Tokenizer(FolderCheckpoint(folder)), MediaProcessor(FolderCheckpoint(folder)), memory=room)
    with serving_rig(Rig(), codec) as running:
        yield running


def chat(server: FakeServer, image: bytes) -> bytes:
    content = [{"type": "image_url", "image_url": {"url": data_url(image)}}]
    body = {"messages": [{"role": "user", "content": content}], "max_tokens": 2}
    return ask(server.port, post_bytes("/v1/chat/completions", json.dumps(body).encode()))


def test_images_that_do_not_fit_are_refused_until_memory_is_free(server: FakeServer, room: RequestMemory) -> None:
    with room.reserve() as others:
        others.use_now(1 << 20)
        answer = chat(server, png(make_image(1)))
        assert status_of(answer) == 503
        assert headers_of(answer)["retry-after"] == "1"
        assert "of the 1.0 MiB for requests: try again later" in error_of(answer)["message"]
    assert status_of(chat(server, png(make_image(1)))) == 200


def test_the_memory_of_images_is_released_however_their_request_ends(server: FakeServer, room: RequestMemory) -> None:
    assert status_of(chat(server, png(make_image(1, 64, 64))[:400])) == 400
    assert status_of(chat(server, png(make_image(2)))) == 200
    server.wait_until_idle()
    deadline = time.monotonic() + 10  # the engine's thread may still hold the request that it has just answered
    while room.held_bytes and time.monotonic() < deadline:
        time.sleep(0.01)
    assert room.held_bytes == 0
