"""Requests as bytes, for clients that behave as no library does."""

from __future__ import annotations

import json
import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any


def post(path: str, **body: Any) -> bytes:
    """Return a complete HTTP/1.1 request with ``Connection: close``."""
    return post_bytes(path, json.dumps(body).encode())


def post_bytes(path: str, content: bytes, content_type: str = "application/json") -> bytes:
    """Return a complete request with any body."""
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: {content_type}\r\n"
    return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content


def complete(prompt: bytes, **body: Any) -> bytes:
    """Return a completion request for the fake model, whose tokens are bytes."""
    return post("/v1/completions", prompt=list(prompt), temperature=0, **body)


def ask(port: int, request: bytes) -> bytes:
    """Send a request, and return the complete response with its headers."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(request)
        answer = b""
        while more := connection.recv(1 << 16):
            answer += more
    return answer


def ask_together(port: int, requests: Sequence[bytes]) -> list[bytes]:
    """Send all requests at the same time."""
    with ThreadPoolExecutor(len(requests)) as clients:
        return list(clients.map(lambda request: ask(port, request), requests))


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def headers_of(answer: bytes) -> dict[str, str]:
    """Return the headers by name in lower case; the last of each name counts."""
    lines = answer.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")[1:]
    return {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


def error_of(answer: bytes) -> dict[str, Any]:
    """Return the error of a response in OpenAI's form."""
    error: dict[str, Any] = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
    return error
