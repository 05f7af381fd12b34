"""The command that prints digests of keys."""

from __future__ import annotations

import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

COMMAND = [sys.executable, "-m", "server.cli", "key-digest"]
DIGEST = f"sha256:{sha256(b'secret').hexdigest()}\n"


def run(*arguments: str, given: str = "") -> tuple[int, str, str]:
    done = subprocess.run([*COMMAND, *arguments], input=given, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def test_a_key_on_standard_input() -> None:
    assert run(given="secret\n") == (0, DIGEST, "")


def test_each_key_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("secret\n\n secret \n")
    assert run(str(file)) == (0, DIGEST * 2, "")


def test_what_is_no_key_is_refused_and_not_shown(tmp_path: Path) -> None:
    assert run(given="two words\n") == (1, "", "greenroom: each line must be a key of visible ASCII characters\n")
    assert run()[0] == 1
    status, _, err = run(str(tmp_path / "none"))
    assert (status, err) == (1, f"greenroom: {tmp_path / 'none'}: No such file or directory\n")
