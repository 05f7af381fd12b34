"""Codecs that an ingress makes of what a replica sends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from server.engine.text.codec import Codec
from server.loading.load import load_server
from server.settings import load_settings
from tests.vision import make_image, png, save_bytes_and_images

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # Ray takes a second to import, and warns

GGUF = Path(__file__).parents[2] / "gguf" / "files" / "gpt-oss.gguf"


def copied(value: Any) -> Any:
    """Send a value as Ray does."""
    from ray import cloudpickle  # noqa: PLC0415

    return cloudpickle.loads(cloudpickle.dumps(value))


def both_codecs(model: Path) -> tuple[Codec, Codec]:
    """Return the codec of a server, and that of an ingress."""
    server = load_server(str(model), load_settings({"host_expert_memory": "100%", "threads": "1"}, {}, None))
    try:
        return server.codec, Codec.of(copied(server.codec.parts))
    finally:
        server.close()


def test_text_of_a_gguf_file_has_the_same_tokens() -> None:
    server, ingress = both_codecs(GGUF)
    assert ingress.encode("hi there") == server.encode("hi there")


def test_images_have_the_same_tokens_and_can_be_sent_on(tmp_path: Path) -> None:
    server, ingress = both_codecs(save_bytes_and_images(tmp_path))
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what"}]}]
    mine, theirs = (codec.encode_chat(messages, [png(make_image(1))]) for codec in (server, ingress))
    assert list(mine.token_ids) == list(theirs.token_ids)
    assert mine.media is not None
    assert copied(theirs).media.prefix_cache_ids == mine.media.prefix_cache_ids
