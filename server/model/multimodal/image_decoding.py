"""Decodes the image bytes that a client sends, within limits on pixels and memory."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from PIL import Image, ImageOps, UnidentifiedImageError

from server.model.errors import ModelError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
MAX_PIXELS = 1 << 25  # 128 MiB
MAX_PIXELS_TOGETHER = 1 << 26  # per request; 16 images of some kilobytes may hold 2 GiB
PIXEL_BYTES = 4  # in a decoded image: Pillow pads RGB
STRIP_ROWS = 256


class ImageError(ModelError):
    """The bytes are not a usable image."""


def count_pixels(contents: Iterable[bytes]) -> int:
    """Count the pixels of a request's images from their file headers, without decoding them.

    Raises:
        ImageError: one is not an image or too large, or they are too large together.
    """
    num_pixels = 0
    for content in contents:
        with _open(content) as image:
            num_pixels += image.width * image.height
        if num_pixels > MAX_PIXELS_TOGETHER:
            raise ImageError(f"the images have more than {MAX_PIXELS_TOGETHER} pixels together; send smaller ones")
    return num_pixels


def read_image(content: bytes) -> Image.Image:
    """Decode an image to RGB, rotated as its EXIF data says; of several frames, the first.

    Beside the image and its file, only some rows of it are in memory at a time.

    Raises:
        ImageError: it is damaged, too large, or not in one of ``FORMATS``.
    """
    with _open(content) as image, _damage_as_image_error():
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        if image.mode in {"RGBA", "LA", "PA"} or "transparency" in image.info:
            return _on_white(image)
        return image if image.mode == "RGB" else image.convert("RGB")


def _open(content: bytes) -> Image.Image:
    with _damage_as_image_error():
        image = Image.open(io.BytesIO(content), formats=FORMATS)
    if image.width * image.height > MAX_PIXELS:
        raise ImageError(f"an image has {image.width} x {image.height} pixels; send no more than {MAX_PIXELS}")
    return image


@contextmanager
def _damage_as_image_error() -> Iterator[None]:
    try:
        yield
    except (UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise ImageError(f"an image has an unknown format; send one of {', '.join(FORMATS)}") from error
    except (OSError, SyntaxError, ValueError) as error:  # Pillow's readers raise these for damaged files
        raise ImageError("an image is damaged: its file is truncated or corrupt; send it again") from error


def _on_white(image: Image.Image) -> Image.Image:
    """Put a transparent image on a white background, in RGB; strip by strip, since each strip takes several copies."""
    shown = Image.new("RGB", image.size)
    for top in range(0, image.height, STRIP_ROWS):
        box = (0, top, image.width, min(top + STRIP_ROWS, image.height))
        seen = image.crop(box).convert("RGBA")
        shown.paste(Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen).convert("RGB"), box)
    return shown
