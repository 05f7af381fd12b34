"""Packs again and again with several threads, each time killed after a random time, and prints how many were killed.

Arguments: a folder for the sources, a folder for the targets, the number of packs, and a seed. A process of its own,
because it forks.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

from expert_store import PackSource
from tests.expert_store.packs import make_source, pack
from tests.faults.faulty_packer import NEW, OLD


def start(source: PackSource, out: Path) -> int:
    """Pack in a child, and return its process id."""
    child = os.fork()
    if child == 0:
        pack(source, out, jobs=3)
        os._exit(0)
    return child


def run(folder: Path, targets: Path, count: int, seed: int) -> int:
    old, new = make_source(folder / "old", shift=OLD), make_source(folder / "new", shift=NEW)
    chance, num_killed = random.Random(seed), 0
    began = time.monotonic()
    os.waitpid(start(new, folder / "timed"), 0)
    duration = time.monotonic() - began
    pack(old, folder / "old pack")
    for number in range(count):
        out = Path(shutil.copytree(folder / "old pack", targets / str(number)))
        child = start(new, out)
        time.sleep(chance.uniform(0, duration))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        num_killed += os.WIFSIGNALED(status)
    return num_killed


if __name__ == "__main__":
    sys.stdout.write(str(run(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))))
