"""Packs again and again, each time with a fault at a later call that changes files, until no call is left.

Arguments: a folder for the sources, a folder for the targets, "old" if the targets hold an older pack already, and the
action and error number of the fault. Prints a JSON list with the outcome of each pack: "killed", "packed" or an error.
A process of its own, because it forks, and because its calls are hooked by a preloaded library.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
from pathlib import Path

from expert_store import PackError
from tests.expert_store.packs import make_source, pack
from tests.faults.file_faults import ALL, CHANGES, CONTROL, FileFaults

OLD, NEW = 0.25, 0.5  # the shifts of two models


def run(folder: Path, targets: Path, has_old: bool, action: int, error: int) -> list[str]:
    faults = FileFaults(Path(os.environ[CONTROL]))
    old, new = make_source(folder / "old", shift=OLD), make_source(folder / "new", shift=NEW)
    outcomes: list[str] = []
    if has_old:
        pack(old, folder / "old pack")
    while len(outcomes) < 1000:
        out = targets / str(len(outcomes))
        if has_old:
            shutil.copytree(folder / "old pack", out)
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            affected = ALL if error == errno.ENOSPC else 1  # a full disk stays full
            faults.set(CHANGES, action, skipped=len(outcomes), affected=affected, error=error)
            try:
                pack(new, out)
                os.write(writing, b"packed")
            except PackError as refusal:
                os.write(writing, str(refusal).encode())
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as pipe:
            outcome = pipe.read()
        _, status = os.waitpid(child, 0)
        faults.clear()
        outcomes.append("killed" if os.WIFSIGNALED(status) else outcome)
        if faults.num_calls < len(outcomes):
            return outcomes
    raise AssertionError("it never came to an end")


if __name__ == "__main__":
    *places, old, action, error = sys.argv[1:]
    json.dump(run(Path(places[0]), Path(places[1]), old == "old", int(action), int(error)), sys.stdout)
