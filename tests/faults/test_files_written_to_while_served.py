"""A checkpoint is overwritten in place while it is served, deleted, or replaced by another file of its name."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.bundled import get, serving_bundled, state_of, text_of
from tests.server.live.requests import ask, error_of, post, status_of

pytestmark = pytest.mark.slow

ONCE = post("/v1/completions", prompt="Once upon a time", max_tokens=8, temperature=0)
BUNDLED = Path("server/demo/model")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return shutil.copytree(BUNDLED, tmp_path / "model")


def experts_file(folder: Path) -> Path:
    """Return the file with most of the model."""
    return max(folder.glob("*.safetensors"), key=lambda path: path.stat().st_size)


def overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-4096, os.SEEK_END)
        file.write(bytes(4096))


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x")


def copy_over(path: Path) -> None:
    data = path.read_bytes()
    with path.open("wb") as file:
        file.write(data[::-1])


@pytest.mark.parametrize("change", [overwrite, truncate, grow, copy_over])
def test_a_change_in_place_is_noticed_and_what_needs_the_file_fails_by_name(
    checkpoint: Path, change: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    with serving_bundled(str(checkpoint), prefetch="off") as (server, _):
        change(experts_file(checkpoint))
        while state_of(ask(server.port, get("/ready"))) != (503, "files_changed"):
            threading.Event().wait(0.05)
        assert state_of(ask(server.port, get("/health"))) == (200, "ok")
        answer = ask(server.port, ONCE)
        assert status_of(answer) == 500
        assert error_of(answer)["message"].startswith("expert ")
    named = [line for line in caplog.messages if experts_file(checkpoint).name in line]
    assert any("was written to while it is served" in line for line in named)


@pytest.mark.parametrize("replace", [True, False])
def test_a_file_that_was_deleted_or_replaced_is_served_as_it_was(checkpoint: Path, replace: bool) -> None:
    with serving_bundled(str(checkpoint), prefetch="off") as (server, loaded):
        text = text_of(ask(server.port, ONCE))
        path = experts_file(checkpoint)
        path.unlink()
        if replace:
            path.write_bytes(b"another")
        loaded.store.evict(list(loaded.store.residents()))
        assert text_of(ask(server.port, ONCE)) == text
        assert state_of(ask(server.port, get("/ready"))) == (200, "ready")
