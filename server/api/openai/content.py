"""Content of a message: text, or parts of text and images.

The ValueError of a validator says what the value must be; ``server.api.core.errors.validation`` puts the field's name
before it.
"""

import base64
from dataclasses import dataclass

from server.api.core.bodies.fields import encodable
from server.api.core.errors.api_errors import InvalidRequestError
from server.api.core.errors.validation import quote

MAX_IMAGES = 16  # in a request
MAX_IMAGES_BYTES = 16 << 20  # in a request, as base64
PARTS = (
    'must hold parts of the form {"type": "text", "text": "..."} or '
    '{"type": "image_url", "image_url": {"url": "data:image/png;base64,..."}} only'
)


@dataclass(frozen=True)
class ImagePart:
    """An image in a message."""

    base64: str
    field: str = "messages"  # of the body

    def decode(self) -> bytes:
        """Return the image file. Call it off the event loop.

        Raises:
            InvalidRequestError: the text is not valid base64.

        """
        try:
            return base64.b64decode(self.base64, validate=True)
        except ValueError as error:
            raise InvalidRequestError(
                f"An image of '{self.field}' is not valid base64: {error}.", self.field
            ) from error


def content_of(value: object) -> str | list[str | ImagePart]:
    """Return text, or a list of texts and images. Text parts without images are joined by line breaks, as in vLLM."""
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
        case {"type": "refusal", "refusal": str(text)}:  # what a model has answered before
            return encodable(text)
        case {"type": "image_url", "image_url": {"url": str(url)}}:
            return image_part(url)
        case _:
            raise ValueError(PARTS)


def image_part(url: str) -> ImagePart:
    """Return the image of a data URL.

    Raises:
        ValueError: it is none.

    """
    header, _, data = url.partition(",")
    if not header.startswith("data:"):
        raise ValueError(
            f"must hold images as data URLs (data:image/png;base64,...), because this server fetches nothing; got "
            f"{quote(url)}"
        )
    if not header.endswith(";base64"):
        raise ValueError(f"must hold images in base64 (data:image/png;base64,...), got {quote(header)}")
    return ImagePart(data)
