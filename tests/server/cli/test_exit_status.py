"""A command's process ends with its status, and after what runs at its end."""

from __future__ import annotations

import subprocess
import sys

import pytest

BEGIN = "import atexit, sys; from server.cli.exit_status import QuickExit; end = QuickExit(); "
KEPT = "class Kept:\n    def __del__(self): print('freed')\nkept = Kept()\nkept.itself = kept\n"


def run(code: str) -> tuple[int, str]:
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    return done.returncode, done.stdout


@pytest.mark.parametrize(("code", "status"), [("None", 0), ("0", 0), ("2", 2)])
def test_a_process_ends_with_its_status_without_freeing_objects(code: str, status: int) -> None:
    ending = f"{BEGIN}\n{KEPT}sys.stdout.write('unflushed '); atexit.register(print, 'last'); end.with_status({code})"
    assert run(ending) == (status, "unflushed last\n")


def test_a_process_that_fails_otherwise_ends_as_usual() -> None:
    assert run(f"{BEGIN}\n{KEPT}end.with_status('a message'); sys.exit(3)") == (3, "freed\n")
