"""Images in messages of ``/v1/chat/completions``."""

import base64

import pytest

from server.api.openai import bodies
from server.engine.interface import RequestRefusedError

URL = "data:image/png;base64,"


def image(content=b"picture", url=URL):
    return {"type": "image_url", "image_url": {"url": url + base64.b64encode(content).decode(), "detail": "auto"}}


def text(words):
    return {"type": "text", "text": words}


def test_template_gets_parts_in_order_and_the_codec_the_files(fake, chat):
    parts = [text("look"), image(b"one"), text("and"), image(b"two")]
    assert chat(messages=[{"role": "user", "content": parts}, {"role": "assistant", "content": "yes"}]).is_success
    shown = [text("look"), {"type": "image"}, text("and"), {"type": "image"}]
    assert fake.codec.conversations == [[{"role": "user", "content": shown}, {"role": "assistant", "content": "yes"}]]
    assert fake.engine.requests[0].media.inputs == (b"one", b"two")


def test_all_choices_show_the_same_images(fake, chat):
    assert chat(messages=[{"role": "user", "content": [image()]}], n=3).is_success
    first, *others = [request.media for request in fake.engine.requests]
    assert all(media is first for media in others)


def test_text_alone_shows_nothing(fake, chat):
    assert chat(messages=[{"role": "user", "content": [text("a"), text("b")]}]).is_success
    assert fake.engine.requests[0].media is None


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"type": "image_url", "image_url": {"url": "https://a.b/c.png"}}, "this server fetches nothing"),
        ({"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}, "this server fetches nothing"),
        ({"type": "image_url", "image_url": {"url": "data:image/png,abc"}}, "must hold images in base64"),
        ({"type": "image_url", "image_url": "data:image/png;base64,"}, "must hold parts of the form"),
        ({"type": "image_url"}, "must hold parts of the form"),
        ({"type": "input_audio", "input_audio": {}}, "must hold parts of the form"),
    ],
)
def test_an_invalid_image_part_is_named(fake, chat, part, message):
    response = chat(messages=[{"role": "user", "content": [text("a"), part]}])
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", "messages[0].content")
    assert message in error["message"]
    assert not fake.engine.streams


@pytest.mark.parametrize("data", ["abc", "a b=", "§§§§"])
def test_invalid_base64_is_named(fake, chat, data):
    part = {"type": "image_url", "image_url": {"url": URL + data}}
    response = chat(messages=[{"role": "user", "content": [part]}])
    assert response.status_code == 400
    assert "not valid base64" in response.json()["error"]["message"]
    assert not fake.engine.streams


def test_too_many_images_are_refused(chat):
    messages = [{"role": "user", "content": [image()] * 9}, {"role": "user", "content": [image()] * 8}]
    response = chat(messages=messages)
    assert response.status_code == 400
    assert response.json()["error"]["message"] == "'messages' must hold no more than 16 images, but holds 17."


def test_too_many_bytes_are_refused(chat, monkeypatch):
    monkeypatch.setattr(bodies, "MAX_IMAGES_BYTES", 1 << 20)
    response = chat(messages=[{"role": "user", "content": [image(bytes(1 << 19))] * 2}])
    assert response.status_code == 400
    assert "no more than 1 MiB of images" in response.json()["error"]["message"]


def test_a_model_that_takes_no_images_says_so(fake, chat):
    fake.codec.refusal = RequestRefusedError("images can't be sent: the model takes no images", "messages")
    response = chat(messages=[{"role": "user", "content": [image()]}])
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "messages"
