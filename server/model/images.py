"""Bytes that a client sent to an image, and nothing that costs more than an image may."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from PIL import Image, ImageOps, UnidentifiedImageError

from .errors import ModelError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
MAX_PIXELS = 1 << 25  # 128 MiB
MAX_PIXELS_TOGETHER = 1 << 26  # of a request; 16 images of some kilobytes may hold 2 GiB
PIXEL_BYTES = 4  # of a decoded image: Pillow pads RGB
STRIP_ROWS = 256


class ImageError(ModelError):
    """The bytes are no image that can be used."""


def count_pixels(contents: Iterable[bytes]) -> int:
    """The pixels of a request's images together, by their files' heads; nothing is decoded.

    Raises:
        ImageError: one is no image or too large, or they are too large together.
    """
    num_pixels = 0
    for content in contents:
        with _open(content) as image:
            num_pixels += image.width * image.height
        if num_pixels > MAX_PIXELS_TOGETHER:
            raise ImageError(f"the images have more than {MAX_PIXELS_TOGETHER} pixels together; send smaller ones")
    return num_pixels


def read_image(content: bytes) -> Image.Image:
    """An image as it is to be looked at, in RGB; of several frames the first.

    Beside the image and its file in memory, no more than some rows of it are held at a time.

    Raises:
        ImageError: it is damaged, too large, or of another format than ``FORMATS``.
    """
    with _open(content) as image, _telling_of_damage():
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        if image.mode in {"RGBA", "LA", "PA"} or "transparency" in image.info:
            return _on_white(image)
        return image if image.mode == "RGB" else image.convert("RGB")


def _open(content: bytes) -> Image.Image:
    with _telling_of_damage():
        image = Image.open(io.BytesIO(content), formats=FORMATS)
    if image.width * image.height > MAX_PIXELS:
        raise ImageError(f"an image has {image.width} x {image.height} pixels; send no more than {MAX_PIXELS}")
    return image


@contextmanager
def _telling_of_damage() -> Iterator[None]:
    try:
        yield
    except (UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise ImageError(f"an image is none of {', '.join(FORMATS)}; send one of these") from error
    except (OSError, SyntaxError, ValueError) as error:  # what Pillow's readers raise for damaged files
        raise ImageError("an image is damaged: its file is cut off or broken") from error


def _on_white(image: Image.Image) -> Image.Image:
    """An image in RGB that is white where it can be seen through, made of strips, for each takes several copies."""
    shown = Image.new("RGB", image.size)
    for top in range(0, image.height, STRIP_ROWS):
        box = (0, top, image.width, min(top + STRIP_ROWS, image.height))
        seen = image.crop(box).convert("RGBA")
        shown.paste(Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen).convert("RGB"), box)
    return shown
