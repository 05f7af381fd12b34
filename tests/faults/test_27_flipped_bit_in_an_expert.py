"""A bit of one packed expert is flipped: the requests that need it fail, all others are served."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from server.model.checkpoint.locate import BUNDLED
from tests.e2e.processes import run_command, serving
from tests.faults.damage import flip_bit
from tests.packed_models import pack_model

pytestmark = pytest.mark.slow


def test_verify_names_the_expert_and_nothing_else(tmp_path: Path) -> None:
    out = pack_model(BUNDLED, tmp_path / "out", "int8")
    assert "is undamaged: 96 experts" in run_command("verify", str(out), fresh=True).stderr
    flip_bit(*out.glob("*/experts-00000.pack"), 1000)
    verified = run_command("verify", str(out))
    (line,) = verified.stderr.splitlines()
    assert (verified.returncode, verified.stdout) == (1, "")
    assert "1 of 96 experts of" in line
    assert "are damaged: expert 0 of layer 0; the first: the checksum of its record" in line


def test_the_requests_that_need_it_fail_and_no_other(tmp_path: Path) -> None:
    """Texts differ in whether they need expert 0 of layer 0."""
    out = pack_model(BUNDLED, tmp_path / "out", "int8")
    flip_bit(*out.glob("*/experts-00000.pack"), 1000)
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
