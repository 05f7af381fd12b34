"""Bytes that a client sent to an image, and nothing that costs more than an image may."""

from __future__ import annotations

import io
from collections.abc import Iterable

from PIL import Image, ImageOps, UnidentifiedImageError

from .errors import ModelError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
MAX_PIXELS = 1 << 25  # 96 MiB in RGB
MAX_PIXELS_TOGETHER = 1 << 26  # of a request; 16 images of some kilobytes may hold 2 GiB


class ImageError(ModelError):
    """The bytes are no image that can be used."""


def read_images(contents: Iterable[bytes]) -> list[Image.Image]:
    """The images of a request, as ``read_image`` reads them.

    Raises:
        ImageError: one can't be used, or they are too large together.
    """
    images: list[Image.Image] = []
    num_pixels = 0
    for content in contents:
        images.append(read_image(content))
        num_pixels += images[-1].width * images[-1].height
        if num_pixels > MAX_PIXELS_TOGETHER:
            raise ImageError(f"the images have more than {MAX_PIXELS_TOGETHER} pixels together; send smaller ones")
    return images


def read_image(content: bytes) -> Image.Image:
    """An image as it is to be looked at, in RGB; of several frames the first.

    Raises:
        ImageError: it is damaged, too large, or of another format than ``FORMATS``.
    """
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise ImageError(f"an image has {width} x {height} pixels; send no more than {MAX_PIXELS}")
            return _on_white(ImageOps.exif_transpose(image)).convert("RGB")
    except (UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise ImageError(f"an image is none of {', '.join(FORMATS)}; send one of these") from error
    except (OSError, SyntaxError, ValueError) as error:  # what Pillow's readers raise for damaged files
        raise ImageError("an image is damaged: its file is cut off or broken") from error


def _on_white(image: Image.Image) -> Image.Image:
    """What can be seen through is white."""
    if image.mode not in {"RGBA", "LA", "PA"} and "transparency" not in image.info:
        return image
    seen = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen)
