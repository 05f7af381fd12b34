"""Images of kilobytes that are hundreds of megabytes once they are decoded, from many clients at once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.engine.codec import Codec
from server.engine.image_room import ImageRoom
from server.model.processor import MediaProcessor
from server.model.tokenizer import Tokenizer
from tests.server.engine.fakes import Rig
from tests.server.live.conftest import FakeServer, serving_rig
from tests.server.live.requests import ask, error_of, headers_of, post_bytes, status_of
from tests.server.model.test_images import save_model
from tests.vision import data_url, make_image, png


@pytest.fixture
def room() -> ImageRoom:
    return ImageRoom(4 * 16 * 12, max_waiting=0)


@pytest.fixture
def server(room: ImageRoom, tmp_path: Path) -> Iterator[FakeServer]:
    """Of a fake model, but with the tokenizer and the image processor of a real one."""
    folder = save_model("qwen3_vl_moe", tmp_path)
    codec = Codec(Tokenizer(folder), MediaProcessor(folder), image_room=room)
    with serving_rig(Rig(), codec) as running:
        yield running


def chat(server: FakeServer, image: bytes) -> bytes:
    content = [{"type": "image_url", "image_url": {"url": data_url(image)}}]
    body = {"messages": [{"role": "user", "content": content}], "max_tokens": 2}
    return ask(server.port, post_bytes("/v1/chat/completions", json.dumps(body).encode()))


def test_images_that_find_no_room_are_refused_until_there_is_some(server: FakeServer, room: ImageRoom) -> None:
    with room.taken(1):
        answer = chat(server, png(make_image(1)))
        assert status_of(answer) == 429
        assert headers_of(answer)["retry-after"] == "1"
        assert "take all the memory that images may: try again later" in error_of(answer)["message"]
    assert status_of(chat(server, png(make_image(1)))) == 200


def test_whatever_becomes_of_images_their_room_is_given_back(server: FakeServer, room: ImageRoom) -> None:
    assert status_of(chat(server, png(make_image(1, 64, 64))[:400])) == 400
    assert status_of(chat(server, png(make_image(2)))) == 200
    server.wait_until_idle()
    assert room.num_taken == 0
