"""What a newcomer gets wrong: one line on standard error that says what to do, status 1, no traceback."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path

import pytest

from server.connections import listen
from server.model.checkpoint import BUNDLED
from server.settings import SettingsError
from tests.e2e.hub import serving_hub
from tests.e2e.processes import run_command


def assert_refused(result: subprocess.CompletedProcess[str], reason: str) -> None:
    assert result.returncode == 1, result.stderr
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("greenroom: ")
    assert reason in line


def test_a_gated_model_names_the_page_of_its_licence(tmp_path: Path) -> None:
    with serving_hub("somebody/gated-model", BUNDLED) as hub:
        hub.is_gated = True
        result = run_command("serve", hub.model, "--port", "0", environment=hub.environment(tmp_path))
    assert_refused(result, f"is gated: accept its licence at {hub.url}/somebody/gated-model, then run `hf auth login`")


def test_a_model_larger_than_the_disk_is_not_begun(tmp_path: Path) -> None:
    with serving_hub("somebody/large-model", BUNDLED) as hub:
        hub.sizes["model.safetensors"] = 1 << 60
        result = run_command("pack", hub.model, str(tmp_path / "out"), environment=hub.environment(tmp_path))
        assert "model.safetensors" not in hub.sent
    assert_refused(result, f"takes 1048576.0 TiB more on disk, and {tmp_path / 'hub'} has ")
    assert result.stderr.rstrip().endswith("free some, or set HF_HOME to a folder on a larger disk")


def test_a_download_is_served_and_half_of_one_is_told(tmp_path: Path) -> None:
    """The second time offline, first with all of it, then without one file."""
    with serving_hub("somebody/some-model", BUNDLED) as hub:
        environment = hub.environment(tmp_path / "cache")
        packed = run_command("pack", hub.model, str(tmp_path / "a"), environment=environment)
        assert packed.returncode == 0, packed.stderr
        assert packed.stderr == f"greenroom: packed somebody/some-model as bfloat16 into {tmp_path / 'a'}\n"
    environment["HF_HUB_OFFLINE"] = "1"
    again = run_command("pack", hub.model, str(tmp_path / "a"), environment=environment)
    assert "holds this pack already" in again.stderr
    for path in (tmp_path / "cache").rglob("tokenizer.json"):
        path.unlink()
    result = run_command("pack", hub.model, str(tmp_path / "a"), environment=environment)
    assert_refused(result, "nor whole in the hub cache")
    assert "HF_HUB_OFFLINE is set; run `hf download somebody/some-model` where there is a network" in result.stderr


def test_a_budget_beyond_memory_is_refused_once_the_trunk_is_known() -> None:
    result = run_command("serve", "--port", "0", "--kv-cache-memory", "1000000GB", "--max-running-requests", "1000000")
    last = result.stderr.splitlines()[-1]
    assert (result.returncode, result.stdout) == (1, "")
    assert last.startswith("greenroom: the experts of a token need 432.0 KiB beside ")
    assert last.endswith(" at most, or less --max-model-len")


def test_a_hub_that_has_no_safetensors_is_not_downloaded_from(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_bytes((BUNDLED / "config.json").read_bytes())
    (model / "pytorch_model.bin").touch()
    with serving_hub("somebody/old-model", model) as hub:
        result = run_command("pack", hub.model, str(tmp_path / "out"), environment=hub.environment(tmp_path))
        assert hub.sent.keys() == {""}
    assert_refused(result, "somebody/old-model has pickled weights alone (.bin)")


def test_a_port_that_needs_rights_is_told_from_one_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            SettingsError, match=f"127.0.0.1:{port}: .*; stop what uses it .*, or choose another --port"
        ):
            listen("127.0.0.1", port)
    monkeypatch.setattr(socket, "create_server", refuse)
    with pytest.raises(SettingsError, match="ports below 1024 are for root; choose another --port"):
        listen("127.0.0.1", 80)
