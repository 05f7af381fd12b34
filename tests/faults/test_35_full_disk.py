"""The disk fills up while a model is packed: temporary files go, the old pack stays."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from tests.expert_store.packs import contents, make_source, pack
from tests.faults.faulty_packer import OLD
from tests.faults.file_faults import FAIL
from tests.faults.pack_runs import pack_with_faults


@pytest.mark.parametrize("has_old", [False, True], ids=["fresh", "over-old"])
def test_a_disk_that_is_full_from_any_call_on_leaves_the_old_pack_alone(tmp_path: Path, has_old: bool) -> None:
    before = {}
    if has_old:
        pack(make_source(tmp_path / "old", shift=OLD), tmp_path / "before")
        before = contents(tmp_path / "before")
    runs = pack_with_faults(tmp_path, has_old=has_old, action=FAIL, error=errno.ENOSPC)
    refused = [out for out, outcome in zip(runs.outs, runs.outcomes, strict=True) if outcome != "packed"]
    assert len(refused) > 20
    for out, outcome in zip(refused, runs.outcomes, strict=False):
        assert outcome.startswith(f"the disk of {out} is full: this pack takes 0.02 GB beside what is there, ")
        assert {name: digest for name, digest in contents(out).items() if name != ".lock"} == {
            name: digest for name, digest in before.items() if name != ".lock"
        }
        pack(runs.source, out)
