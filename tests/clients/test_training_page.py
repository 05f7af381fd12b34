"""The programs and commands of docs/training.md, as they stand, train weights that are served."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.processes import serving

pytestmark = pytest.mark.clients
ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```(python|bash)\n(.*?)^```", re.DOTALL | re.MULTILINE)
ANSWER = "Warm the pot, add the leaves, and pour on boiling water."


def shell(script: str, folder: Path) -> str:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-e", "-c", script], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.timeout(1200)
def test_the_page_on_training_works_as_it_stands(tmp_path: Path) -> None:
    (tmp_path / "server").symlink_to(ROOT / "server")
    commands = []
    for language, text in BLOCK.findall((ROOT / "docs/training.md").read_text("utf-8")):
        if language == "python":
            (tmp_path / text.split(maxsplit=2)[1]).write_text(text)
        else:
            commands.append(text)
    first = next(index for index, text in enumerate(commands) if "greenroom serve" in text)
    shell("".join(commands[:first]), tmp_path)
    (tmp_path / "experts/tea").mkdir(parents=True)
    with serving("--adapters-dir", str(tmp_path / "adapters"), "--experts-dir", str(tmp_path / "experts")) as server:
        address = server.url.removeprefix("http://")
        said = shell("".join(commands[first + 1 :]).replace("localhost:8000", address), tmp_path)
    assert said.count(ANSWER) == 3  # the adapter, the mixture and the variant, but not the base model
