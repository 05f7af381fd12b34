"""The command `greenroom pack`, then `greenroom serve` with its output."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from server.model.checkpoint.locate import BUNDLED
from tests.e2e.processes import run_command, serving


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
    what_to_do = "give a folder written by greenroom pack"
    no_pack = f"greenroom: {BUNDLED} is not a packed model, and has no checksums; {what_to_do}"
    assert verified(BUNDLED, 1) == no_pack
    nowhere = tmp_path / "nowhere"
    assert verified(nowhere, 1) == f"greenroom: there is no folder {nowhere}; give one written by greenroom pack"


def test_one_damaged_expert_fails_the_requests_that_need_it_and_no_other(tmp_path: Path) -> None:
    """Expert 0 of layer 0 is damaged; texts differ in whether they need it."""
    out = tmp_path / "out"
    assert run_command("pack", str(BUNDLED), str(out), "--weights", "int8").returncode == 0
    (records,) = out.glob("*/experts-00000.pack")
    assert "is undamaged: 96 experts" in verified(out, 0)
    with records.open("r+b") as file:
        file.seek(1000)
        byte = file.read(1)[0]
        file.seek(1000)
        file.write(bytes([byte ^ 1]))
    assert "1 of 96 experts of" in (line := verified(out, 1))
    assert "are damaged: expert 0 of layer 0; the first: the checksum of its record" in line
    failures, texts = [], []
    with serving(str(out), "--host-expert-memory", "25%", "--dtype", "float32") as server:
        for prompt in ("import os", "SCENE I.", "Mix the flour", "Section 1.", "A dog is", "tar -x", "Q", "a", "The"):
            body = {"model": "greenroom-demo", "prompt": prompt, "max_tokens": 1, "temperature": 0}
            reply = httpx.post(f"{server.url}/v1/completions", json=body, timeout=60)
            if reply.status_code == 200:
                texts.append(reply.json()["choices"][0]["text"])
            else:
                failures.append(reply.json()["error"]["message"])
        assert server.total("expert_quarantined") == 1
        assert server.total("expert_load_failures_total") == 1
        assert server.total("request_success_total", 'finished_reason="error"') == len(failures)
        assert server.total("e2e_request_latency_seconds_count") == len(texts)
        assert httpx.get(f"{server.url}/health").status_code == 200
    assert texts
    assert failures
    assert set(failures) == {"expert 0 of layer 0 can't be read; see the log"}
