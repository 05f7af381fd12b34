"""Storage that is slow, goes away and comes back, or is read-only."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from server.model.checkpoint.locate import BUNDLED
from tests.e2e.processes import run_command
from tests.faults.file_faults import FAIL, READS, STALL
from tests.faults.paged_server import PagedServer, serving_paged, text_of
from tests.needs import need_mounts
from tests.packed_models import pack_model

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack_model(BUNDLED, tmp_path_factory.mktemp("packs") / "out")


@pytest.fixture(scope="module")
def paged(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PagedServer]:
    with serving_paged(packed, tmp_path_factory.mktemp("reads")) as running:
        yield running


def test_the_api_answers_while_experts_are_read_from_a_slow_disk(paged: PagedServer) -> None:
    paged.faults.set(READS, STALL, millis=100)
    with ThreadPoolExecutor(1) as clients:
        reply = clients.submit(paged.ask)
        while paged.faults.num_calls < 3:
            assert not reply.done()
            time.sleep(0.01)
        assert httpx.get(f"{paged.server.url}/health").status_code == 200
        assert httpx.get(f"{paged.server.url}/ready").status_code == 200
        assert not reply.done()
        assert text_of(reply.result()) == paged.text
    paged.check_is_healthy()


@pytest.mark.parametrize("error", [errno.ESTALE, errno.ENODEV], ids=errno.errorcode.get)
def test_storage_that_vanishes_and_comes_back_costs_the_requests_of_that_time(paged: PagedServer, error: int) -> None:
    paged.faults.set(READS, FAIL, error=error)
    assert [paged.ask().status_code for _ in range(3)] == [500, 500, 500]
    paged.check_is_healthy()


READ_ONLY = ("unshare", "--map-root-user", "--mount", "sh", "-ec")
REMOUNT = 'mount --bind "$0" "$0"; mount -o remount,bind,ro "$0" "$0"; exec "$@"'


@pytest.fixture
def read_only(packed: Path) -> tuple[str, ...]:
    """A command that runs another one, for which the pack's folder is read-only."""
    wrapper = (*READ_ONLY, REMOUNT, str(packed))
    need_mounts(*wrapper, "true")
    return wrapper


def test_a_pack_on_a_read_only_file_system_is_served(packed: Path, tmp_path: Path, read_only: tuple[str, ...]) -> None:
    with serving_paged(packed, tmp_path, wrapper=read_only) as paged:
        assert text_of(paged.ask()) == paged.text


def test_packing_onto_a_read_only_file_system_is_refused_in_a_line(packed: Path, read_only: tuple[str, ...]) -> None:
    refused = run_command("pack", str(BUNDLED), str(packed), "--weights", "int8", wrapper=read_only)
    assert refused.returncode == 1
    assert refused.stderr == f"greenroom: cannot pack into {packed}: {packed}/.lock: Read-only file system\n"
