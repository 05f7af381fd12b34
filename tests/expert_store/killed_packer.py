"""Packs repeatedly, each time killed at the next write, flush or rename, and prints how many times.

Arguments: a folder for the sources, a folder for the targets, and whether the targets hold an older pack already.
Run as a process of its own, for it forks.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np

from tests.expert_store.packs import make_source, pack

left = 0  # calls until the kill


def dying(call: Any, is_torn: bool) -> Any:
    """Wrap a call so that the last one is done half, or not at all, before the process is killed."""

    def wrapped(*arguments: Any, **options: Any) -> Any:
        global left  # noqa: PLW0603
        left -= 1
        if left == 0:
            if is_torn:
                first, data, *rest = arguments
                call(first, bytes(np.frombuffer(data, np.uint8)[: len(data) // 2]), *rest)
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments, **options)

    return wrapped


def run(folder: Path, targets: Path, has_old: bool) -> int:
    global left  # noqa: PLW0603
    old, new = make_source(folder / "old", shift=0.25), make_source(folder / "new", shift=0.5)
    for number in range(1, 1000):
        out = targets / str(number)
        if has_old:
            pack(old, out)
        child = os.fork()
        if child == 0:
            left = number
            os.pwrite, os.write = dying(os.pwrite, True), dying(os.write, True)
            Path.write_bytes = dying(Path.write_bytes, True)  # type: ignore[method-assign]
            shutil.copyfile = dying(shutil.copyfile, False)
            shutil.rmtree = dying(shutil.rmtree, False)  # type: ignore[assignment]
            os.fsync, os.rename, os.replace = (dying(call, False) for call in (os.fsync, os.rename, os.replace))
            os.unlink, os.mkdir = dying(os.unlink, False), dying(os.mkdir, False)
            pack(new, out)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            assert status == 0
            return number
    raise AssertionError("it never came to an end")


if __name__ == "__main__":
    sys.stdout.write(str(run(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == "over-old")))
