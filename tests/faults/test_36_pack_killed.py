"""A pack is killed at each of its calls that change files: afterwards it is old or new, and can be finished."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from tests.expert_store.packs import contents, pack, state
from tests.faults.faulty_packer import NEW, OLD
from tests.faults.file_faults import FAIL, KILL
from tests.faults.pack_runs import PackRuns, pack_with_faults, pack_with_random_kills

pytestmark = pytest.mark.slow


def states_of(runs: PackRuns, tmp_path: Path) -> set[float | None]:
    """Return the packs in the folders, and check that packing again gives the new one alone."""
    pack(runs.source, tmp_path / "at_once")
    wanted, seen = contents(tmp_path / "at_once"), set()
    for number, out in enumerate(runs.outs):
        seen.add(state(out))
        pack(runs.source, out)
        assert contents(out) == wanted, f"fault at call {number}"
    return seen


@pytest.mark.parametrize("has_old", [False, True], ids=["fresh", "over-old"])
def test_after_a_kill_at_any_call_the_pack_is_old_or_new(tmp_path: Path, has_old: bool) -> None:
    runs = pack_with_faults(tmp_path, has_old=has_old, action=KILL)
    assert set(runs.outcomes[:-1]) == {"killed"}
    assert states_of(runs, tmp_path) == {OLD if has_old else None, NEW}


def test_after_an_input_output_error_at_any_call_the_pack_is_old_or_new(tmp_path: Path) -> None:
    runs = pack_with_faults(tmp_path, has_old=True, action=FAIL, error=errno.EIO)
    refusals = [outcome for outcome in runs.outcomes if outcome != "packed"]  # a folder is there, whatever mkdir says
    assert len(refusals) > len(runs.outcomes) - 5
    assert all(refusal.endswith(": Input/output error") for refusal in refusals), refusals
    assert states_of(runs, tmp_path) == {OLD, NEW}


def test_after_a_kill_at_any_time_the_pack_is_old_or_new(tmp_path: Path) -> None:
    runs = pack_with_random_kills(tmp_path, count=30, seed=36)
    assert runs.outcomes
    assert states_of(runs, tmp_path) <= {OLD, NEW}
