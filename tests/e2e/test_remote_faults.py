"""A model of the hub is served through a proxy that injects what goes wrong between servers.

The mirror of the hub, the proxy and the server are processes of their own.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.hub_mirror import mirror
from server.model.checkpoint.locate import BUNDLED
from tests.e2e.processes import Server, run_command, serving
from tests.e2e.test_web_model import FEW, complete, failure_of
from tests.fault_proxy import Fault, Faults, fault_proxy
from tests.needs import need

pytestmark = pytest.mark.slow

MODEL = "somebody/some-model"
NBYTES = (BUNDLED / "model.safetensors").stat().st_size
ALONE = ("--complete-download", "off", "--prefetch", "off")
MBIT = 10_000.0
TOKEN = "hf_" + "a" * 34


@pytest.fixture(scope="module")
def proxy() -> Iterator[Faults]:
    with mirror(BUNDLED, MODEL, MBIT) as upstream, fault_proxy(upstream) as found:
        yield found


@pytest.fixture(scope="module")
def served(proxy: Faults, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(MODEL, *FEW, *ALONE, environment=environment(proxy, tmp_path_factory.mktemp("hub"))) as server:
        yield server


@pytest.fixture(scope="module")
def text(served: Server) -> str:
    return complete(served, MODEL)


def environment(proxy: Faults, cache: Path) -> dict[str, str]:
    return {
        "HF_ENDPOINT": proxy.url,
        "HF_HOME": str(cache),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "0",
        "HF_TOKEN": TOKEN,
    }


@pytest.mark.parametrize(
    "faults",
    [
        [{"seconds": 0.5}],
        [{"bytes_per_second": 1_000_000}],
        [{"status": 429, "headers": {"Retry-After": "1"}}],
        [{"status": 429}],
        [{"status": 503, "headers": {"Retry-After": "1"}}],
        [{"status": 503}, {"status": 503}],
        [{"cut": 0}],
        [{"cut": 1000}, {"cut": 50_000}],
        [{"short": 1000}],
        [{"shift": 100}],
        [{"headers": {"Content-Range": f"bytes 0-1/{NBYTES}"}}],
        [{"status": 403}],
    ],
    ids=[
        "latency",
        "throttled",
        "429 with Retry-After",
        "429",
        "503 with Retry-After",
        "503",
        "cut before the first byte",
        "cut",
        "short range",
        "wrong range",
        "wrong Content-Range",
        "expired link",
    ],
)
def test_what_passes_is_not_noticed(proxy: Faults, served: Server, text: str, faults: list[Fault]) -> None:
    proxy.inject(*faults)
    assert complete(served, MODEL) == text
    assert proxy.left == []


def test_what_stays_fails_the_request_by_name_and_the_next_one_runs(proxy: Faults, served: Server, text: str) -> None:
    proxy.inject(*[{"status": 400}] * 1000)
    failure = next(filter(None, (failure_of(served, MODEL) for _ in range(8))), "")  # once it needs another expert
    assert re.search(r"expert \d+ of layer \d can't be read; see the log", failure)
    proxy.inject()
    assert any(not failure_of(served, MODEL) for _ in range(8))  # the first may wait for a read that was refused before
    assert complete(served, MODEL) == text


def test_a_changed_file_is_refused_by_name_and_no_log_has_the_token(proxy: Faults, tmp_path: Path) -> None:
    with serving(MODEL, *FEW, *ALONE, environment=environment(proxy, tmp_path)) as server:
        proxy.inject({"headers": {"ETag": '"another"'}})
        assert re.search(r"expert \d+ of layer \d can't be read; see the log", failure_of(server, MODEL))
        _, _, log = server.interrupt()
    assert "model.safetensors was changed on the server while it is served; restart this server" in log
    assert TOKEN not in log


def test_a_certificate_that_nobody_vouches_for_is_told_in_one_sentence(proxy: Faults, tmp_path: Path) -> None:
    need("openssl")
    files = [str(tmp_path / "certificate"), str(tmp_path / "key")]
    subject = ["-subj", "/CN=127.0.0.1", "-newkey", "rsa:2048", "-nodes", "-x509"]
    subprocess.run(["openssl", "req", *subject, "-out", files[0], "-keyout", files[1]], check=True, capture_output=True)
    with fault_proxy(proxy.url, *files) as secure:
        result = run_command("inspect", secure.url.replace("//", "//me:secret@") + "/signed")
    check_refusal(result, "the server's certificate is not valid")


def test_a_host_that_is_not_found_is_told_in_one_sentence() -> None:
    check_refusal(run_command("inspect", "http://me:secret@nowhere.invalid/model"), "nowhere.invalid/model")


def check_refusal(result: subprocess.CompletedProcess[str], words: str) -> None:
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("greenroom: ")
    assert words in line
    assert "secret" not in line
