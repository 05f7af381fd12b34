"""Mistakes of newcomers give one line on standard error that says what to do, status 1 and no traceback."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from server.lifecycle.listening_socket import listen
from server.model.checkpoint.locate import BUNDLED, find_checkpoint
from server.model.errors import ModelError
from server.settings import SettingsError
from tests.e2e.hub import Hub, serving_hub, use_hub
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


@pytest.fixture
def asking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Hub], None]:
    """Let this process ask a hub, with a cache of its own."""

    def ask(hub: Hub) -> None:
        use_hub(monkeypatch, hub.url, tmp_path / "cache" / "hub")

    return ask


def test_a_model_larger_than_the_disk_is_not_downloaded(tmp_path: Path, asking: Callable[[Hub], None]) -> None:
    with serving_hub("somebody/large-model", BUNDLED) as hub:
        hub.sizes["model.safetensors"] = 1 << 60
        asking(hub)
        with pytest.raises(ModelError, match=r"needs 1048576\.0 TiB more on disk, .*; free some space, or set HF_HOME"):
            find_checkpoint(hub.model, None)
        assert hub.sent.keys() == {""}
    assert not list(tmp_path.iterdir())


def test_a_hub_model_without_safetensors_is_not_downloaded(tmp_path: Path, asking: Callable[[Hub], None]) -> None:
    (tmp_path / "config.json").touch()
    (tmp_path / "pytorch_model.bin").touch()
    with serving_hub("somebody/old-model", tmp_path) as hub:
        asking(hub)
        with pytest.raises(ModelError, match=r"somebody/old-model has pickled weights alone \(\.bin\)"):
            find_checkpoint(hub.model, None)
        assert hub.sent.keys() == {""}


def test_a_download_is_used_and_an_incomplete_one_is_refused(tmp_path: Path) -> None:
    """The second time offline, without one of the files."""
    out = str(tmp_path / "out")
    with serving_hub("somebody/some-model", BUNDLED) as hub:
        environment = hub.environment(tmp_path / "cache")
        packed = run_command("pack", hub.model, out, environment=environment)
    assert packed.returncode == 0, packed.stderr
    assert packed.stderr == f"greenroom: packed somebody/some-model as bfloat16 into {out}\n"
    for path in (tmp_path / "cache").rglob("tokenizer.json"):
        path.unlink()
    result = run_command("pack", hub.model, out, environment={**environment, "HF_HUB_OFFLINE": "1"})
    assert_refused(result, "does not have all its files")
    assert "HF_HUB_OFFLINE is set; run `hf download somebody/some-model` on a machine with network" in result.stderr


def test_a_budget_beyond_memory_is_refused_once_the_trunk_is_known() -> None:
    result = run_command("serve", "--port", "0", "--kv-cache-memory", "1000000GB", "--max-running-requests", "1000000")
    last = result.stderr.splitlines()[-1]
    assert (result.returncode, result.stdout) == (1, "")
    assert last.startswith("greenroom: the experts of a token need 432.0 KiB beside ")
    assert last.endswith(" at most, or lower --max-model-len")


def test_a_port_that_needs_rights_has_another_message_than_one_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            SettingsError, match=f"127.0.0.1:{port}: .*; stop the process that uses it .*, or choose another --port"
        ):
            listen("127.0.0.1", port)
    monkeypatch.setattr(socket, "create_server", refuse)
    with pytest.raises(SettingsError, match="ports below 1024 need root rights; choose another --port"):
        listen("127.0.0.1", 80)
