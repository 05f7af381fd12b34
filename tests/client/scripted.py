"""A server on a real socket that sends scripted replies, complete or cut off."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.client.bodies import event

CONTENT_TYPES = {True: "text/event-stream", False: "application/json"}


@dataclass
class ScriptedReply:
    """A reply; a stream may be cut off. After the body, the server waits for ``until`` and closes the connection."""

    body: bytes
    is_stream: bool = False
    status: int = 200
    until: threading.Event | None = None


READY = ScriptedReply(b'{"status": "ready"}')


@dataclass
class ScriptedServer:
    """Replies by path; the last reply of a path is repeated for all later requests."""

    url: str
    replies: dict[str, list[ScriptedReply]] = field(default_factory=dict)
    requests: list[tuple[str, Any]] = field(default_factory=list)

    def next_reply(self, path: str, body: bytes) -> ScriptedReply:
        self.requests.append((path, json.loads(body) if body else None))
        replies = self.replies[path]
        return replies.pop(0) if len(replies) > 1 else replies[0]


def model_list(*names: str, parent: str | None = None) -> ScriptedReply:
    """Return a list of models, of which all but the parent have one."""
    card = {"object": "model", "created": 1, "owned_by": "greenroom"}
    data = [card | {"id": name, "parent": None if name == parent else parent} for name in names]
    return ScriptedReply(json.dumps({"object": "list", "data": data}).encode())


def chat_stream(*texts: str, is_complete: bool = True) -> ScriptedReply:
    """Return a streamed chat completion, or the beginning of one."""
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "tiny"}

    def chunk(delta: dict[str, Any], finish_reason: str | None = None) -> bytes:
        return event(head | {"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]})

    body = b"".join(chunk({"content": text}) for text in texts)
    usage = {"prompt_tokens": 3, "completion_tokens": len(texts), "total_tokens": 3 + len(texts)}
    end = chunk({}, "stop") + event(head | {"choices": [], "usage": usage}) + event("[DONE]")
    return ScriptedReply(body + (end if is_complete else b""), is_stream=True)


def _handler(server: Callable[[], ScriptedServer]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            reply = server().next_reply(self.path.partition("?")[0], body)
            self.send_response(reply.status)
            self.send_header("Content-Type", CONTENT_TYPES[reply.is_stream])
            self.send_header("Connection", "close")
            # One more than the body of a stream has, so that a client detects a connection that ends early.
            self.send_header("Content-Length", str(len(reply.body) + reply.is_stream))
            self.end_headers()
            self.wfile.write(reply.body)
            self.wfile.flush()
            if reply.until is not None:
                reply.until.wait(30)

        do_POST = do_GET  # noqa: N815  http.server's name

        def log_message(self, *_: object) -> None:
            """Disable the log."""

    return Handler


@contextmanager
def scripted_server() -> Iterator[ScriptedServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _handler(lambda: script)) as server:
        script = ScriptedServer(f"http://127.0.0.1:{server.server_address[1]}")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield script
        server.shutdown()
        thread.join()
