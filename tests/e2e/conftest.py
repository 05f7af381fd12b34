"""The server that most end-to-end tests share."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import openai
import pytest

from tests.e2e.counted import Counted
from tests.e2e.processes import Server, serving


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """A server of the bundled model, with a quarter of its experts in memory."""
    alias = "claude-*=greenroom-demo"
    with serving("--host-expert-memory", "25%", "--dtype", "float32", "--model-alias", alias) as running:
        yield running


@pytest.fixture(scope="session")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with server.client() as client:
        yield client


@pytest.fixture
def counted(server: Server) -> Counted:
    return Counted(server)


@pytest.fixture(scope="module")
def http(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as http:
        yield http
