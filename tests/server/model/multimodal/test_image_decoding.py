"""Image bytes of a client are decoded, or refused in a sentence."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from server.model.multimodal import image_decoding
from server.model.multimodal.image_decoding import ImageError, count_pixels, read_image
from tests.vision import make_image, png


def file(image: Image.Image, kind: str, **options: object) -> bytes:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "BMP", "JPEG"])
def test_formats_are_read_as_rgb(kind: str) -> None:
    image = read_image(file(make_image(1), kind))
    assert (image.mode, image.size) == ("RGB", (16, 12))


def test_decoded_pixels_are_those_sent() -> None:
    assert read_image(png(make_image(3))).tobytes() == make_image(3).tobytes()


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_pixels_are_white(mode: str) -> None:
    image = read_image(png(Image.new(mode, (2, 2), (0,) * len(mode))))
    assert image.getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_half_transparent_pixels_are_blended_with_white_strip_by_strip(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_decoding, "STRIP_ROWS", 5)
    image = make_image(4, 16, 12).convert(mode)
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    complete = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA")).convert("RGB")
    assert read_image(png(image)).tobytes() == complete.tobytes()


def test_a_transparent_colour_is_white() -> None:
    image = Image.new("RGB", (2, 2), (1, 2, 3))
    assert read_image(file(image, "PNG", transparency=(1, 2, 3))).getpixel((1, 1)) == (255, 255, 255)


def test_a_photo_with_an_exif_rotation_is_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    assert read_image(file(make_image(1), "JPEG", exif=exif)).size == (12, 16)


@pytest.mark.parametrize("content", [b"", b"hello", b"%PDF-1.7", file(make_image(1), "TIFF")])
def test_bytes_in_no_image_format_are_refused(content: bytes) -> None:
    with pytest.raises(ImageError, match="an image has an unknown format; send one of PNG, JPEG"):
        read_image(content)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_damaged_image_is_refused(kind: str) -> None:
    content = file(make_image(1, 64, 64), kind)
    with pytest.raises(ImageError, match="an image is damaged"):
        read_image(content[: len(content) // 2])


def test_an_image_of_too_many_pixels_is_refused_before_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_decoding, "MAX_PIXELS", 100)
    with pytest.raises(ImageError, match="an image has 16 x 12 pixels; send no more than 100"):
        read_image(png(make_image(1)))


def test_images_of_too_many_pixels_together_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_decoding, "MAX_PIXELS_TOGETHER", 2 * 16 * 12)
    content = png(make_image(1))
    assert count_pixels([content] * 2) == 2 * 16 * 12
    with pytest.raises(ImageError, match="the images have more than 384 pixels together; send smaller ones"):
        count_pixels([content] * 3)
