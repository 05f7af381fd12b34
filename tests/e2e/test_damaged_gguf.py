"""Damaged GGUF files are refused in one sentence; while they are served, only requests that read them fail."""

from __future__ import annotations

import itertools
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import httpx
import openai
import pytest

from tests.e2e.processes import run_command, serving
from tests.gguf.models import FILES, VOCABULARY
from tests.server.model.checkpoint.gguf.test_gguf_checkpoint import Q8_0, rewrite

FIRST, SECOND = "tiny-00001-of-00003.gguf", "tiny-00002-of-00003.gguf"
LAYERS, EXPERTS = 2, 4


def cut_short(folder: Path) -> Path:
    path = Path(shutil.copy(FILES / "qwen3moe.gguf", folder / "tiny.gguf"))
    os.truncate(path, path.stat().st_size - 4096)
    return path


def without_a_split(folder: Path) -> Path:
    rewrite(folder / "tiny.gguf", Q8_0, split=10)
    (folder / SECOND).unlink()
    return folder / FIRST


def with_a_split_of_another_model(folder: Path) -> Path:
    rewrite(folder / "tiny.gguf", Q8_0, split=10)
    (folder / "other").mkdir()
    rewrite(folder / "other" / "tiny.gguf", Q8_0, name="olmoe", split=10)
    shutil.copy(folder / "other" / SECOND, folder / SECOND)
    return folder / FIRST


def with_fewer_tokens(folder: Path) -> Path:
    tokens = [f"token{index}" for index in range(VOCABULARY - 1)]
    return rewrite(folder / "tiny.gguf", changes={"tokenizer.ggml.tokens": tokens})


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (cut_short, ("tiny.gguf", "cut short")),
        (without_a_split, (SECOND, "missing")),
        (with_a_split_of_another_model, (SECOND, "shape", "download all files of the model again")),
        (with_fewer_tokens, ("tiny.gguf", f"{VOCABULARY - 1} tokens")),
    ],
)
def test_serving_and_inspecting_refuse_a_file_in_the_same_sentence(
    tmp_path: Path, damage: Callable[[Path], Path], named: tuple[str, ...]
) -> None:
    path = str(damage(tmp_path))
    served, inspected = run_command("serve", path, "--port", "0"), run_command("inspect", path)
    assert (served.returncode, inspected.returncode) == (1, 1)
    assert all(each in served.stderr for each in named), served.stderr
    assert len(served.stderr.splitlines()) == 1
    assert served.stderr == inspected.stderr


def test_a_file_that_is_written_to_while_it_is_served_fails_those_requests_that_read_it(tmp_path: Path) -> None:
    path = Path(shutil.copy(FILES / "qwen3moe.gguf", tmp_path / "tiny.gguf"))
    keys = list(itertools.product(range(LAYERS), range(EXPERTS)))
    with serving(str(path)) as server, server.client() as client:

        def complete() -> int:
            reply = client.completions.create(model="tiny", prompt="the theatre", max_tokens=4)
            assert reply.usage is not None
            return reply.usage.completion_tokens

        while server.total("expert_resident") < len(keys):
            threading.Event().wait(0.02)
        os.truncate(path, path.stat().st_size // 2)
        assert complete() == 4  # all of its experts are in memory
        httpx.post(f"{server.url}/v1/experts/evict", json={"experts": keys}).raise_for_status()
        with pytest.raises(openai.InternalServerError, match=r"expert . of layer . can't be read"):
            complete()
        assert httpx.get(f"{server.url}/health").status_code == 200
