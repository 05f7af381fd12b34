"""Reads of experts fail, are interrupted or end early: errors are answered, and the next text is right."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.model.checkpoint.locate import BUNDLED
from tests.e2e.processes import run_command
from tests.faults.file_faults import FAIL, READS, SHORTEN, preload
from tests.faults.paged_server import PagedServer, serving_paged, text_of
from tests.packed_models import pack_model

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["checkpoint", "pack"])
def paged(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PagedServer]:
    folder = tmp_path_factory.mktemp("reads")
    model = BUNDLED if request.param == "checkpoint" else pack_model(BUNDLED, folder / "out")
    with serving_paged(model, folder) as running:
        yield running


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOMEM], ids=errno.errorcode.get)
@pytest.mark.parametrize("affected", [1, 1000])
def test_a_failed_read_is_answered_and_forgotten(paged: PagedServer, error: int, affected: int) -> None:
    failures = paged.server.total("expert_load_failures_total")
    paged.faults.set(READS, FAIL, affected=affected, error=error)
    reply = paged.ask()
    assert reply.status_code == 500
    assert re.fullmatch(r"expert \d+ of layer \d+ can't be read; see the log", reply.json()["error"]["message"])
    assert paged.server.total("expert_load_failures_total") > failures
    assert paged.server.total("expert_quarantined") == 0
    paged.check_is_healthy()


def test_interrupted_reads_are_repeated(paged: PagedServer) -> None:
    paged.faults.set(READS, FAIL, affected=20, error=errno.EINTR)
    assert text_of(paged.ask()) == paged.text
    assert paged.faults.num_calls > 20
    paged.check_is_healthy()


def test_short_reads_are_continued(paged: PagedServer) -> None:
    paged.faults.set(READS, SHORTEN)
    assert text_of(paged.ask()) == paged.text
    assert paged.faults.num_calls > 20
    paged.check_is_healthy()


@pytest.mark.parametrize("command", ["serve", "pack"])
def test_an_error_while_a_checkpoint_is_loaded_or_packed_is_one_line(tmp_path: Path, command: str) -> None:
    faults, variables = preload(tmp_path, BUNDLED)
    faults.set(READS, FAIL, skipped=2 * len(list(BUNDLED.glob("*.safetensors"))), error=errno.EIO)  # but headers
    rest = ("--port", "0") if command == "serve" else (str(tmp_path / "out"),)
    refused = run_command(command, str(BUNDLED), *rest, environment=variables)
    assert (refused.returncode, refused.stdout) == (1, "")
    last = refused.stderr.splitlines()[-1]
    assert re.fullmatch(r"greenroom: cannot read (\S+ from )?\S+\.safetensors: Input/output error", last)
    assert "Traceback" not in refused.stderr
