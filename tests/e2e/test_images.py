"""Chat with images through the real command and the real `openai` package."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
from PIL import Image
from transformers import AutoTokenizer

from server.model.checkpoint.folder_checkpoint import FolderCheckpoint
from server.model.multimodal.image_processor import MediaProcessor
from tests.checkpoints import load_transformers_model
from tests.e2e.processes import Server, serving
from tests.server.model.multimodal.test_image_parity import NEW_TOKENS, ask_reference, save_model
from tests.vision import data_url, make_image, png

MODEL = "qwen3_vl_moe"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(MODEL, tmp_path_factory.mktemp("checkpoints") / MODEL)


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    with serving(str(folder), "--dtype", "float32", "--host-expert-memory", "50%") as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Server) -> openai.OpenAI:
    return server.client()


def message(*images: Image.Image) -> list[Any]:
    shown = [{"type": "image_url", "image_url": {"url": data_url(png(image))}} for image in images]
    return [{"role": "user", "content": [{"type": "text", "text": "w5 w17"}, *shown, {"type": "text", "text": "w9"}]}]


def ask(client: openai.OpenAI, messages: list[Any], **options: Any) -> Any:
    extra = {"ignore_eos": True}
    return client.chat.completions.create(
        model=MODEL, messages=messages, temperature=0, max_tokens=NEW_TOKENS, extra_body=extra, **options
    )


def stock_text(folder: Path, images: list[Image.Image]) -> str:
    shown = [{"type": "image"} for _ in images]
    content = [{"type": "text", "text": "w5 w17"}, *shown, {"type": "text", "text": "w9"}]
    prompt = MediaProcessor(FolderCheckpoint(folder)).encode_chat([{"role": "user", "content": content}], images)
    tokens, _ = ask_reference(load_transformers_model(folder), prompt)
    text: str = AutoTokenizer.from_pretrained(folder).decode(tokens, skip_special_tokens=True)
    return text


def test_requests_with_different_images_are_answered_as_by_transformers(folder: Path, client: openai.OpenAI) -> None:
    pictures = [[make_image(1)], [make_image(2, 24, 12)], [make_image(3), make_image(4)], [make_image(1)]]
    with ThreadPoolExecutor(len(pictures)) as pool:
        replies = list(pool.map(lambda images: ask(client, message(*images)), pictures))
    texts = [reply.choices[0].message.content.strip() for reply in replies]
    assert texts == [stock_text(folder, images) for images in pictures]
    assert len(set(texts)) == 3


def test_choices_and_streams_show_the_same_image(client: openai.OpenAI) -> None:
    whole = ask(client, message(make_image(5)), n=2)
    assert whole.choices[0].message.content == whole.choices[1].message.content
    pieces = [chunk.choices[0].delta.content or "" for chunk in ask(client, message(make_image(5)), stream=True)]
    assert "".join(pieces) == whole.choices[0].message.content


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("http://127.0.0.1/picture.png", "this server fetches nothing"),
        (data_url(b"no picture"), "an image has an unknown format; send one of PNG"),
        (data_url(png(make_image(1, 64, 64))[:400]), "an image is damaged"),
        ("data:image/png;base64,!!!", "not valid base64"),
    ],
)
def test_unusable_images_are_refused_and_the_server_continues(client: openai.OpenAI, url: str, complaint: str) -> None:
    content: list[Any] = [{"type": "image_url", "image_url": {"url": url}}]
    with pytest.raises(openai.BadRequestError, match=complaint):
        ask(client, [{"role": "user", "content": content}])
    assert ask(client, message(make_image(1))).choices[0].finish_reason == "length"


def test_a_text_model_refuses_images() -> None:
    reason = "images can't be sent: the model takes no images"
    with serving() as running, pytest.raises(openai.BadRequestError, match=reason):
        running.client().chat.completions.create(model="greenroom-demo", messages=message(make_image(1)))
