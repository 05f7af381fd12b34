"""The format of streams whose lines are JSON objects."""

from collections.abc import Mapping
from typing import Any

from server.api.core.json_text.encoding import encode_json

JSON_LINES = "application/x-ndjson"


def json_line(data: Mapping[str, Any]) -> bytes:
    """Encode one object as a line. It is ASCII, because some clients take U+2028 and its like for the end of a line."""
    return f"{encode_json(data)}\n".encode()
