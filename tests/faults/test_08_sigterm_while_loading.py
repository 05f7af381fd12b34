"""SIGTERM while loading, whatever the loading thread does: the server ends at once, with status 0 and no output."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from pathlib import Path

import httpx
import pytest

from server.model.checkpoint.locate import BUNDLED
from tests.e2e.hub import serving_hub
from tests.e2e.processes import COMMAND

pytestmark = pytest.mark.slow


def test_a_download_that_hangs_does_not_hold_the_end_up(tmp_path: Path) -> None:
    with serving_hub("somebody/some-model", BUNDLED) as hub:
        hub.gate.clear()
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        process = subprocess.Popen(
            [COMMAND, "serve", hub.model, "--port", str(port)],
            env={**os.environ, **hub.environment(tmp_path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            assert hub.asked_for_weights.wait(60)
            ready = httpx.get(f"http://127.0.0.1:{port}/ready")
            refusal = httpx.post(f"http://127.0.0.1:{port}/v1/completions", json={"prompt": "Once"})
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=30)
        finally:
            process.kill()
            process.communicate()
    assert (ready.status_code, ready.json()) == (503, {"status": "loading"})
    assert (refusal.status_code, refusal.headers["Retry-After"]) == (503, "1")
    assert process.returncode == 0
    assert out == ""
    assert "Traceback" not in err
