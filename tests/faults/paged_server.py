"""A server that reads most experts of a request from disk, whose reads a test can make fail."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.e2e.processes import Server, serving
from tests.faults.file_faults import FileFaults, preload

BODY = {"model": "greenroom-demo", "prompt": "Once upon a time", "max_tokens": 8, "temperature": 0}
NAME = "greenroom-demo"


@dataclass(frozen=True)
class PagedServer:
    """A running server, the control over its reads, and the text that it gives while nothing is wrong."""

    server: Server
    faults: FileFaults
    text: str

    def ask(self) -> httpx.Response:
        return ask(self.server)

    def check_is_healthy(self) -> None:
        """Check that the server lives and gives the right text."""
        self.faults.clear()
        assert httpx.get(f"{self.server.url}/health").status_code == 200
        assert text_of(self.ask()) == self.text


def ask(server: Server) -> httpx.Response:
    """Complete a prompt. The memory for experts is so small that this reads some."""
    return httpx.post(f"{server.url}/v1/completions", json=BODY, timeout=60)


def text_of(reply: httpx.Response) -> str:
    text: str = reply.raise_for_status().json()["choices"][0]["text"]
    return text


@contextmanager
def serving_paged(model: Path, folder: Path, *, wrapper: tuple[str, ...] = ()) -> Iterator[PagedServer]:
    """Serve a model with the least memory for its experts.

    Args:
        folder: for the library that makes faults.
        wrapper: a command that runs the server's command.
    """
    faults, variables = preload(folder, model)
    arguments = (str(model), "--served-model-name", NAME, "--host-expert-memory", "1MiB", "--dtype", "float32")
    with serving(*arguments, "--prefetch", "off", environment=variables, wrapper=wrapper) as server:
        yield PagedServer(server, faults, text_of(ask(server)))
