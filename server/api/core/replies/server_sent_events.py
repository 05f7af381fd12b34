"""The format of server-sent events."""

from collections.abc import Callable, Mapping
from typing import Any

from server.api.core.json_text.encoding import encode_json

EVENT_STREAM = "text/event-stream"
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # the second turns off buffering in nginx


def sse(data: Mapping[str, Any], name: str | None = None, encode: Callable[[Any], str] = encode_json) -> bytes:
    """Encode one event. It is ASCII, because some clients take U+2028 and its like for the end of a line."""
    named = "" if name is None else f"event: {name}\n"
    return f"{named}data: {encode(data)}\n\n".encode()
