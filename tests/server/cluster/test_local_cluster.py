"""Files that Serve would take, but that say something else than their writer means."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from server.cluster import local_cluster, local_node
from server.cluster.deploy_file import describe
from server.cluster.local_cluster import running_cluster, schema_of
from server.cluster.local_node import ClusterError
from server.cluster.options import ClusterOptions
from server.settings import SettingsError

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # Ray takes a second to import, and warns

OPTIONS = ClusterOptions.checked({"memory": "2GiB"})
CONTENT = describe(OPTIONS, OPTIONS.address, 8000)
HTTP = CONTENT["http_options"]


def test_a_described_file_is_taken_as_it_is() -> None:
    assert schema_of(CONTENT, OPTIONS).http_options.port == 8000


@pytest.mark.parametrize(("given", "level"), [({}, "WARNING"), ({"log_level": "DEBUG"}, "DEBUG")])
def test_serve_logs_warnings_unless_the_file_has_a_level(given: dict[str, str], level: str) -> None:
    logging_config = {**CONTENT["logging_config"], **given}
    taken = schema_of({**CONTENT, "logging_config": logging_config}, OPTIONS).logging_config
    assert (taken.log_level, taken.enable_access_log) == (level, False)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"http_optionz": HTTP}, "http_optionz: Serve has no such option"),
        ({"http_options": {**HTTP, "prot": 80}}, r"http_options\.prot: Serve has no such option"),
        ({"http_options": {**HTTP, "port": "eight"}}, r"http_options\.port: "),
        ({"http_options": {"port": 80}}, r"http_options\.host is 0\.0\.0\.0, and args\.address 127\.0\.0\.1"),
    ],
)
def test_a_file_with_options_that_serve_would_not_use_is_refused(changed: dict[str, Any], told: str) -> None:
    with pytest.raises(SettingsError, match=told):
        schema_of({**CONTENT, **changed}, OPTIONS)


def test_a_port_in_use_is_refused_before_ray_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_cluster, "set_variables", lambda: None)
    monkeypatch.setattr(local_cluster, "local_node", lambda _: pytest.fail("Ray starts"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        content = {**CONTENT, "http_options": {**HTTP, "port": taken.getsockname()[1]}}
        with pytest.raises(SettingsError, match="cannot listen on"), running_cluster(content, OPTIONS, pytest.fail):
            pass


class Node:
    """A node of which processes have ended."""

    def __init__(self, *ended: str):
        self._ended, self.is_killed = ended, False

    def dead_processes(self) -> list[tuple[str, None]]:
        return [(name, None) for name in self._ended]

    def kill_all_processes(self, *, check_alive: bool) -> None:
        self.is_killed = not check_alive


def test_a_node_whose_raylet_has_ended_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_node, "LOOK_SECONDS", 0.0)
    node, told = Node("log_monitor", "raylet"), list[ClusterError]()
    local_node.watch(node, "/logs", threading.Event(), told.append)
    assert node.is_killed
    assert [str(each) for each in told] == ["Ray has ended, as its raylet did; start again. Its logs are in /logs"]


def test_ports_of_the_agents_are_none_that_the_system_gives_to_connections() -> None:
    assert all(port in local_node.PORTS for port in local_node._free_ports(4))


def test_the_token_that_ray_has_made_is_for_its_user_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    token = tmp_path / ".ray" / "auth_token"
    with local_node.private_token():
        token.parent.mkdir()
        token.write_text("secret")
    assert (token.stat().st_mode & 0o777, token.parent.stat().st_mode & 0o777) == (0o600, 0o700)


def test_a_token_from_before_that_all_may_read_is_for_its_user_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    token = tmp_path / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text("secret")
    token.chmod(0o644)
    with local_node.private_token():
        pass
    assert token.stat().st_mode & 0o777 == 0o600


def test_the_folder_of_ray_is_for_its_user_alone(tmp_path: Path) -> None:
    (tmp_path / f"greenroom-{os.getuid()}").mkdir(mode=0o755)
    assert local_node.private_folder(tmp_path).stat().st_mode & 0o777 == 0o700


def test_a_link_in_the_place_of_the_folder_of_ray_is_refused(tmp_path: Path) -> None:
    (tmp_path / f"greenroom-{os.getuid()}").symlink_to(tmp_path)
    with pytest.raises(ClusterError, match="set RAY_TMPDIR to another place"):
        local_node.private_folder(tmp_path)
