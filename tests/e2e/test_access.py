"""Keys, hosts and limits of the real command follow its settings."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from tests.e2e.processes import Server, run_command, serving

KEY, FILE_KEY, ADMIN = "sk-of-the-environment", "sk-of-the-file", "sk-of-an-admin"


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(f"{FILE_KEY}\n")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("GREENROOM_API_KEY", KEY)
        environment.setenv("GREENROOM_ADMIN_API_KEY", ADMIN)
        with serving("--api-key-file", str(keys), "--log-level", "debug", "--rate-limit", "100/h") as server:
            yield server


def status(server: Server, path: str, key: str | None = None, **headers: str) -> int:
    headers |= {} if key is None else {"Authorization": f"Bearer {key}"}
    return httpx.get(server.url + path, headers=headers).status_code


def test_keys_hosts_and_origins(locked: Server) -> None:
    assert [status(locked, "/v1/models", key) for key in (None, "wrong", KEY, FILE_KEY, ADMIN)] == [
        401,
        401,
        200,
        200,
        200,
    ]
    assert [status(locked, "/v1/experts", key) for key in (None, KEY, ADMIN)] == [401, 403, 200]
    assert status(locked, "/health") == 200
    assert status(locked, "/v1/models", KEY, Host="evil.example") == 403
    assert status(locked, "/v1/models", KEY, Origin="https://evil.example") == 403


def test_a_caller_is_identified_by_its_socket(locked: Server) -> None:
    """Proxy headers have no effect on limits or the log."""
    response = httpx.get(
        f"{locked.url}/v1/models",
        headers={"Authorization": f"Bearer {KEY}", "X-Forwarded-For": "1.2.3.4", "X-Forwarded-Proto": "https"},
    )
    assert response.headers["x-ratelimit-limit-requests"] == "100"
    assert "server" not in response.headers


def test_connections_are_guarded(locked: Server) -> None:
    with socket.create_connection(("127.0.0.1", urlsplit(locked.url).port or 0)) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nX: " + b"a" * 100_000)
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 431 ")


def test_no_key_is_in_the_log(locked: Server) -> None:
    """The last test of this file: it ends the server, and reads all that it has written."""
    status(locked, "/v1/models", "sk-wrong")
    _, out, err = locked.interrupt()
    assert "/v1/models" in err
    assert "sk-" not in out + err


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (("--api-key", ""), {}, "--api-key: a key must have visible ASCII characters only, and at least one"),
        ((), {"GREENROOM_ADMIN_API_KEY": "se cret"}, "GREENROOM_ADMIN_API_KEY: a key must have visible ASCII"),
        (("--rate-limit", "many"), {}, "--rate-limit 'many': write requests per second, minute or hour, such as 60/m"),
        (("--max-requests-per-key", "0"), {}, "--max-requests-per-key '0': "),
        (("--allow-origin", "example.org"), {}, "--allow-origin 'example.org': write scheme://host[:port]"),
        (("--allowed-host", "http://x"), {}, "--allowed-host 'http://x': write a name or address without scheme"),
    ],
)
def test_a_wrong_setting_is_one_line(arguments: tuple[str, ...], environment: dict[str, str], message: str) -> None:
    result = run_command("serve", *arguments, environment=environment)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"greenroom: {message}")
    assert result.stderr.count("\n") == 1
    assert "cret" not in result.stderr


def test_a_missing_key_file_is_one_line(tmp_path: Path) -> None:
    result = run_command("serve", "--port", "0", "--api-key-file", str(tmp_path / "none"))
    assert result.returncode == 2
    assert result.stderr == f"greenroom: --api-key-file {tmp_path / 'none'}: No such file or directory\n"


def test_help_shows_no_key() -> None:
    result = run_command("serve", "--help", environment={"GREENROOM_API_KEY": KEY, "GREENROOM_ADMIN_API_KEY": ADMIN})
    assert result.returncode == 0
    assert "--admin-api-key-file FILE" in result.stdout
    assert "sk-of-" not in result.stdout
