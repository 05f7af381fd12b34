"""Requests as bytes, for clients that do what no library would."""

from __future__ import annotations

import json
from typing import Any


def post(path: str, **body: Any) -> bytes:
    """A whole HTTP/1.1 request, after whose answer the connection ends."""
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content


def complete(prompt: bytes, **body: Any) -> bytes:
    """A completion of the fake model, whose tokens are bytes."""
    return post("/v1/completions", prompt=list(prompt), temperature=0, **body)
