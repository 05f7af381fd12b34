"""What a message says and shows: text, or parts of text and images.

A validator's ValueError says what the value must be; ``server.api.validation`` puts the field's name before it.
"""

import base64
from dataclasses import dataclass

from server.api.errors import InvalidRequestError
from server.api.openai.fields import encodable
from server.api.validation import quote

MAX_IMAGES = 16  # of a request
MAX_IMAGES_BYTES = 16 << 20  # of a request, as base64
PARTS = (
    'must hold parts of the form {"type": "text", "text": "..."} or '
    '{"type": "image_url", "image_url": {"url": "data:image/png;base64,..."}} only'
)


@dataclass(frozen=True)
class ImagePart:
    """An image within a message."""

    base64: str

    def decode(self) -> bytes:
        """The image's file; takes a while, so call it off the event loop.

        Raises:
            InvalidRequestError: it is no base64.

        """
        try:
            return base64.b64decode(self.base64, validate=True)
        except ValueError as error:
            raise InvalidRequestError(f"An image of 'messages' is not valid base64: {error}.", "messages") from error


def content_of(value: object) -> str | list[str | ImagePart]:
    """Text as it is, parts of text joined line by line as vLLM does, or texts and images in their order."""
    if isinstance(value, str):
        return encodable(value)
    if not isinstance(value, list):
        raise ValueError("must be a string or a list of parts")  # noqa: TRY004  pydantic's own
    parts = [_part(part) for part in value]
    texts = [part for part in parts if isinstance(part, str)]
    return "\n".join(texts) if len(texts) == len(parts) else parts


def _part(part: object) -> str | ImagePart:
    match part:
        case {"type": "text", "text": str(text)}:
            return encodable(text)
        case {"type": "image_url", "image_url": {"url": str(url)}}:
            return _image(url)
        case _:
            raise ValueError(PARTS)


def _image(url: str) -> ImagePart:
    header, _, data = url.partition(",")
    if not header.startswith("data:"):
        raise ValueError(
            f"must hold images as data URLs (data:image/png;base64,...), but {quote(url)} is none, and this server "
            "fetches nothing"
        )
    if not header.endswith(";base64"):
        raise ValueError(f"must hold images in base64 (data:image/png;base64,...), but {quote(header)} says otherwise")
    return ImagePart(data)
