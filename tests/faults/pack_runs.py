"""Packs with a fault at each of their calls on files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from expert_store import PackSource
from tests.expert_store.packs import NUM_EXPERTS, NUM_LAYERS, make_source
from tests.faults.faulty_packer import NEW
from tests.faults.file_faults import preload

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class PackRuns:
    """The folders of packs, each with a fault at another call, and the outcome of each pack."""

    source: PackSource  # that was packed
    outs: list[Path]
    outcomes: list[str]


def pack_with_faults(tmp_path: Path, *, has_old: bool, action: int, error: int = 0) -> PackRuns:
    """Pack a model once for each of its calls that change files, with a fault there.

    Args:
        has_old: the folders hold the pack of an older model.
    """
    targets = tmp_path / "targets"
    targets.mkdir()
    _, variables = preload(tmp_path, targets)
    words = [str(tmp_path), str(targets), "old" if has_old else "none", str(action), str(error)]
    outcomes = json.loads(_run("tests.faults.faulty_packer", words, variables))
    assert len(outcomes) > 2 * NUM_LAYERS * NUM_EXPERTS + 10
    return PackRuns(
        make_source(tmp_path / "new", shift=NEW), [targets / str(number) for number in range(len(outcomes))], outcomes
    )


def pack_with_random_kills(tmp_path: Path, count: int, seed: int) -> PackRuns:
    """Pack a model over an older one, several times, each time killed after a random time."""
    targets = tmp_path / "targets"
    targets.mkdir()
    num_killed = int(_run("tests.faults.randomly_killed_packer", [str(tmp_path), str(targets), str(count), str(seed)]))
    outs = [targets / str(number) for number in range(count)]
    return PackRuns(make_source(tmp_path / "new", shift=NEW), outs, ["killed"] * num_killed)


def _run(module: str, words: list[str], variables: Mapping[str, str] | None = None) -> str:
    limits = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    environment = {**os.environ, **limits, **(variables or {})}
    command = [sys.executable, "-m", module, *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
