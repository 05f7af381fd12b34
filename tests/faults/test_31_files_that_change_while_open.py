"""A shard is replaced, deleted or cut short while it is served: an answer is right or an error."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from server.model.checkpoint.locate import BUNDLED
from tests.faults.paged_server import serving_paged, text_of

pytestmark = pytest.mark.slow


def replace(shard: Path) -> None:
    other = shard.with_suffix(".other")
    other.write_bytes(bytes(shard.stat().st_size))
    other.replace(shard)


def cut(shard: Path) -> None:
    with shard.open("r+b") as file:
        file.truncate(4096)


@pytest.mark.parametrize("change", [replace, Path.unlink, cut], ids=["replaced", "deleted", "cut"])
def test_answers_are_right_or_errors(tmp_path: Path, change: Callable[[Path], None]) -> None:
    model = Path(shutil.copytree(BUNDLED, tmp_path / "model"))
    with serving_paged(model, tmp_path) as paged:
        for shard in model.glob("*.safetensors"):
            change(shard)
        for _ in range(3):
            reply = paged.ask()
            if change is cut:
                assert reply.status_code >= 500
            if reply.status_code == 200:
                assert text_of(reply) == paged.text
            else:
                assert reply.json()["error"]["message"]
        assert httpx.get(f"{paged.server.url}/health").status_code == 200
        status, _, log = paged.server.interrupt()
    assert status == 0
    assert "Traceback" not in log
