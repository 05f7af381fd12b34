"""A server on a socket that says what a test wants, and breaks off where it wants."""

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
class Answer:
    """A body, and what is waited for after it before the connection ends; a stream's may end too soon."""

    body: bytes
    is_stream: bool = False
    status: int = 200
    until: threading.Event | None = None


READY = Answer(b'{"status": "ready"}')


@dataclass
class ScriptedServer:
    """Answers by path; the last of several answers of a path is for all later requests."""

    url: str
    answers: dict[str, list[Answer]] = field(default_factory=dict)
    requests: list[tuple[str, Any]] = field(default_factory=list)

    def take(self, path: str, body: bytes) -> Answer:
        self.requests.append((path, json.loads(body) if body else None))
        answers = self.answers[path]
        return answers.pop(0) if len(answers) > 1 else answers[0]


def model_list(*names: str) -> Answer:
    data = [{"id": name, "object": "model", "created": 1, "owned_by": "greenroom"} for name in names]
    return Answer(json.dumps({"object": "list", "data": data}).encode())


def said(*texts: str, is_whole: bool = True) -> Answer:
    """A streamed turn of the assistant, or the beginning of one."""
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "tiny"}

    def piece(delta: dict[str, Any], finish_reason: str | None = None) -> bytes:
        return event(head | {"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]})

    body = b"".join(piece({"content": text}) for text in texts)
    usage = {"prompt_tokens": 3, "completion_tokens": len(texts), "total_tokens": 3 + len(texts)}
    end = piece({}, "stop") + event(head | {"choices": [], "usage": usage}) + event("[DONE]")
    return Answer(body + (end if is_whole else b""), is_stream=True)


def _handler(server: Callable[[], ScriptedServer]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            answer = server().take(self.path.partition("?")[0], body)
            self.send_response(answer.status)
            self.send_header("Content-Type", CONTENT_TYPES[answer.is_stream])
            self.send_header("Connection", "close")
            # More than there is: a client knows that something is missing when the connection ends.
            self.send_header("Content-Length", str(len(answer.body) + answer.is_stream))
            self.end_headers()
            self.wfile.write(answer.body)
            self.wfile.flush()
            if answer.until is not None:
                answer.until.wait(30)

        do_POST = do_GET  # noqa: N815  http.server's name

        def log_message(self, *_: object) -> None:
            """Say nothing."""

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
