"""These tests install clients from PyPI and npm, so only ``-m clients`` collects them (``make clients``)."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from server.model.checkpoint.locate import BUNDLED, BUNDLED_NAME
from tests.clients.templates import short_template
from tests.e2e.processes import Server, serving

CONTEXT = 131072  # agents begin with prompts of 10,000 tokens and more; the weights are the bundled ones
# With these the bundled model's answers end.
SAMPLING = {"temperature": 0, "repetition_penalty": 1.1, "max_new_tokens": 1000}


def pytest_ignore_collect(config: pytest.Config) -> bool | None:
    return None if config.getoption("-m") == "clients" else True


@dataclass(frozen=True)
class Served:
    """A server that all clients share, and the folder of its model."""

    server: Server
    folder: Path

    @property
    def values(self) -> dict[str, str]:
        return {"url": self.server.url, "model": BUNDLED_NAME, "folder": str(self.folder)}


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served") / "model"
    shutil.copytree(BUNDLED, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": CONTEXT}))
    flags = [
        *(str(folder), "--served-model-name", BUNDLED_NAME, "--model-alias", f"claude-*={BUNDLED_NAME}"),
        *("--override-generation-config", json.dumps(SAMPLING), "--chat-template", short_template(folder)),
        *("--response-store", str(folder.parent / "responses")),
    ]
    with serving(*flags) as server:
        yield Served(server, folder)


@pytest.fixture(scope="session")
def environments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the clients' environments: that of CLIENTS_DIR, where they are kept, or a temporary one."""
    kept = os.environ.get("CLIENTS_DIR")
    return Path(kept).resolve() if kept else tmp_path_factory.mktemp("environments")
