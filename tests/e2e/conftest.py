"""The server that most end-to-end tests share."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

from server.byte_sizes import GIB
from server.loading.remote_models import room_on_disk
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


@pytest.fixture
def hub_cache(tmp_path: Path) -> Iterator[Path]:
    """A folder for the hub's cache: in memory if the disk is so full that no download is kept on it."""
    if room_on_disk(tmp_path) > GIB:
        yield tmp_path
    else:
        with tempfile.TemporaryDirectory(dir="/dev/shm") as in_memory:
            yield Path(in_memory)
