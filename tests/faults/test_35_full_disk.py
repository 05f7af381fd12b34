"""The disk fills up while a model is packed: temporary files go, the old pack stays."""

from __future__ import annotations

import errno
import subprocess
from pathlib import Path

import pytest

from server.model.checkpoint.locate import BUNDLED
from tests.e2e.processes import COMMAND
from tests.expert_store.packs import contents, make_source, pack
from tests.faults.faulty_packer import OLD
from tests.faults.file_faults import FAIL
from tests.faults.pack_runs import pack_with_faults
from tests.needs import need_mounts
from tests.packed_models import pack_model

pytestmark = pytest.mark.slow


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


SMALL_DISK = """
mount -t tmpfs -o size=32m tmpfs "$0"
cp --archive "$1" "$0/out"
"$2" pack "$3" "$0/out" --weights bfloat16 && exit 9
ls -A "$0/out"
exec "$2" verify "$0/out"
"""


def test_a_file_system_with_too_little_space_keeps_the_old_pack(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    namespace = ["unshare", "--map-root-user", "--mount"]
    need_mounts(*namespace, "mount", "-t", "tmpfs", "tmpfs", str(disk))
    old = pack_model(BUNDLED, tmp_path / "old", "int8")
    done = subprocess.run(
        [*namespace, "sh", "-euc", SMALL_DISK, disk, old, COMMAND, BUNDLED],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split()) == sorted(path.name for path in old.iterdir())
    full, verified = done.stderr.splitlines()
    assert full.startswith(f"greenroom: the disk of {disk}/out is full: this pack takes 0.0")
    assert full.endswith("; free some space and run the same command again")
    assert "is undamaged: 96 experts" in verified
