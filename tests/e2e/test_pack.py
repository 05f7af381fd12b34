"""The command `greenroom pack`, then `greenroom serve` with its output."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import httpx
import pytest

from expert_store import read_manifest
from server.model.checkpoint.locate import BUNDLED
from tests.e2e.processes import READY, run_command, serving, start
from tests.needs import WITHOUT_RIGHTS, need_readable
from tests.packed_models import pack_model


def complete(url: str) -> str:
    body = {"model": "greenroom-demo", "prompt": "Once upon a time", "max_tokens": 12, "temperature": 0}
    text: str = (
        httpx.post(f"{url}/v1/completions", json=body, timeout=60).raise_for_status().json()["choices"][0]["text"]
    )
    return text


@pytest.fixture(scope="module")
def unpacked_text() -> str:
    with serving("--dtype", "float32") as server:
        return complete(server.url)


@pytest.mark.parametrize("weights", ["bfloat16", "int4"])
def test_a_packed_model_is_served_under_its_name(tmp_path: Path, unpacked_text: str, weights: str) -> None:
    out = str(tmp_path / "out")
    packed = run_command("pack", str(BUNDLED), out, "--weights", weights, "--jobs", "2")
    assert packed.returncode == 0, packed.stderr
    assert packed.stdout == ""
    assert f"packed greenroom-demo as {weights} into {out}" in packed.stderr
    with serving(out, "--host-expert-memory", "25%", "--dtype", "float32") as server:
        assert server.ready_line.endswith("(model greenroom-demo)")
        text = complete(server.url)
    assert text == unpacked_text if weights == "bfloat16" else text
    again = run_command("pack", str(BUNDLED), out, "--weights", weights)
    assert again.returncode == 0
    assert "already holds this packed model" in again.stderr


def test_failures_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("")
    failed = run_command("pack", str(BUNDLED), str(tmp_path))
    assert failed.returncode == 1
    assert failed.stderr.splitlines()[-1].startswith("greenroom: ")
    assert "holds mine.txt" in failed.stderr
    assert "Traceback" not in failed.stderr


@pytest.mark.parametrize("arguments", [("x",), ("x", "y", "--weights", "int2"), ("x", "y", "--jobs", "0")])
def test_wrong_usage_is_status_2(arguments: tuple[str, ...]) -> None:
    assert run_command("pack", *arguments).returncode == 2


def test_a_gguf_file_is_not_written_and_the_tool_that_writes_it_is_named(tmp_path: Path) -> None:
    refused = run_command("pack", str(BUNDLED), str(tmp_path / "out.gguf"))
    (line,) = refused.stderr.splitlines()
    assert refused.returncode == 2
    assert "llama-quantize" in line
    assert not list(tmp_path.iterdir())


def test_an_unknown_format_is_refused_with_those_that_there_are() -> None:
    refused = run_command("pack", "x", "y", "--trunk", "int2")
    (line,) = refused.stderr.splitlines()
    assert line.startswith("greenroom pack: argument --trunk: invalid choice: 'int2'")
    assert all(known in line for known in ("unchanged", "int8", "int4"))


def verified(folder: Path, status: int) -> str:
    """Run `greenroom verify`, and return its line."""
    done = run_command("verify", str(folder))
    assert (done.returncode, done.stdout) == (status, "")
    (line,) = done.stderr.splitlines()
    return line


def test_only_packs_can_be_verified(tmp_path: Path) -> None:
    what_to_do = "give a folder written by greenroom pack, or a GGUF file"
    no_pack = f"greenroom: {BUNDLED} is not a packed model, and has no checksums; {what_to_do}"
    assert verified(BUNDLED, 1) == no_pack
    nowhere = tmp_path / "nowhere"
    assert verified(nowhere, 1) == f"greenroom: there is no {nowhere}; {what_to_do}"


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack_model(BUNDLED, tmp_path_factory.mktemp("packs") / "out")


@pytest.mark.parametrize("unreadable", [".", "manifest.json", "data", "data/config.json", "data/experts-00000.pack"])
def test_a_pack_that_can_not_be_read_is_told_in_a_line(packed: Path, unreadable: str) -> None:
    need_readable(WITHOUT_RIGHTS)
    path = packed / unreadable.replace("data", read_manifest(packed).data)
    mode = path.stat().st_mode
    path.chmod(0)
    try:
        refused = run_command("verify", str(packed), wrapper=WITHOUT_RIGHTS)
    finally:
        path.chmod(mode)
    (line,) = refused.stderr.splitlines()
    assert (refused.returncode, refused.stdout) == (1, "")
    assert line.startswith("greenroom: ")
    assert "Permission denied" in line or "can't be read; change its permissions" in line


def test_a_pack_that_is_replaced_while_it_is_loaded_is_loaded_again(tmp_path: Path) -> None:
    out = pack_model(BUNDLED, tmp_path / "out", "int8")
    process = start("serve", str(out), "--port", "0", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        while "loading greenroom-demo from" not in process.stderr.readline():
            pass
        process.send_signal(signal.SIGSTOP)
        pack_model(BUNDLED, out, "bfloat16")
        process.send_signal(signal.SIGCONT)
        url = process.stdout.readline().removeprefix(READY).split()[0]
        assert complete(url)
        process.send_signal(signal.SIGINT)
        _, log = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert f"{out} was packed again while it was loaded; loading the new pack" in log
