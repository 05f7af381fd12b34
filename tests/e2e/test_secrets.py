"""No secret is in what the real command writes: at every level and in both formats, in errors, and when it crashes."""

from __future__ import annotations

import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from server.model.checkpoint.locate import BUNDLED
from tests.e2e.processes import Server, run_command, serving

# Every secret contains this word.
MARK = "swordfish"
KEY, FILE_KEY, ADMIN = f"user-{MARK}", f"user-of-the-file-{MARK}", f"admin-{MARK}"
COLLECTOR = f"http://somebody:{MARK}@127.0.0.1:9"  # nobody listens there
ENVIRONMENT = {
    "GREENROOM_API_KEY": KEY,
    "HF_TOKEN": f"hf_{MARK}",
    # The second is none, since it has no name, as in "Authorization: Bearer KEY".
    "OTEL_EXPORTER_OTLP_HEADERS": f"authorization=Bearer%20{MARK},Bearer {MARK}",
    "OTEL_EXPORTER_OTLP_TIMEOUT": "1",
    "OTEL_BSP_SCHEDULE_DELAY": "100",
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return shutil.copytree(BUNDLED, tmp_path / "model")


@pytest.fixture
def start(tmp_path: Path, model: Path) -> Iterator[Callable[[str, str], Server]]:
    keys, config = tmp_path / "keys", tmp_path / "config.toml"
    keys.write_text(f"{FILE_KEY}\n")
    config.write_text(f'admin_api_key = ["{ADMIN}"]\n')
    contexts = []

    def begin(level: str, form: str) -> Server:
        logs = ("--log-level", level, "--log-format", form)
        access = ("--api-key-file", str(keys), "--config", str(config), "--otlp-endpoint", COLLECTOR)
        experts = ("--host-expert-memory", "1", "--prefetch", "off")
        contexts.append(serving(str(model), *logs, *access, *experts, environment=ENVIRONMENT))
        return contexts[-1].__enter__()

    yield begin
    for context in contexts:
        context.__exit__(None, None, None)


def send_secrets(server: Server) -> list[str]:
    """Send requests that hold secrets, where they belong and where they do not; return the answers."""
    sent: list[dict[str, str]] = [
        {"Authorization": f"Bearer {KEY}"},
        {"x-api-key": FILE_KEY},
        {"Authorization": f"Bearer {ADMIN}"},
        {"Authorization": f"Bearer unknown-{MARK}"},
        {"Authorization": f"Basic {MARK}"},
        {"Authorization": MARK},
        {"Authorization": f"Bearer {KEY}", "Host": "evil.example"},
        {"Authorization": f"Bearer {KEY}", "Origin": "https://evil.example"},
    ]
    body = {"prompt": f"my password is {MARK}", "max_tokens": 2, "cache_salt": MARK, "api_key": KEY, "user": MARK}
    answers = []
    with httpx.Client(base_url=server.url, timeout=60, params={"api_key": KEY}) as client:
        for headers in sent:
            paths = ("/v1/completions", "/v1/chat/completions", "/v1/experts/pin", "/v1/nowhere")
            answers += [client.post(path, json=body, headers=headers) for path in paths]
            answers.append(client.get("/v1/models", headers=headers))
    too_long = {**body, "cache_salt": MARK * 200}
    answers.append(httpx.post(f"{server.url}/v1/completions", json=too_long, headers=sent[0]))
    return [f"{answer.headers} {answer.text}" for answer in answers if answer.status_code in (401, 403, 404)]


def send_garbage(server: Server) -> None:
    """Send what is no HTTP, with a key in it."""
    for head in (f"Authorization: Bearer {KEY}\r\n\r\n", f"GET / HTTP/1.1\r\nAuthorization Bearer {KEY}\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", urlsplit(server.url).port or 0)) as connection:
            connection.sendall(head.encode())
            while connection.recv(1 << 16):
                pass


def damage(model: Path) -> None:
    """Overwrite the weights, so that reading experts fails."""
    for file in model.glob("*.safetensors"):
        with file.open("r+b") as weights:
            weights.truncate(1 << 16)


@pytest.mark.parametrize(("level", "form"), [("debug", "text"), ("debug", "json"), ("warning", "text")])
def test_no_secret_is_in_the_log(
    start: Callable[[str, str], Server], model: Path, tmp_path: Path, level: str, form: str
) -> None:
    server = start(level, form)
    answers = send_secrets(server)
    send_garbage(server)
    (tmp_path / "keys").write_text(f"{FILE_KEY} and more\n")  # no key: it has blanks
    server.process.send_signal(signal.SIGHUP)
    damage(model)
    complete = {"prompt": "Once", "max_tokens": 2}
    failed = httpx.post(f"{server.url}/v1/completions", json=complete, headers={"x-api-key": KEY}, timeout=60)
    assert failed.status_code == 500
    status, out, err = server.interrupt()
    assert status == 0
    assert "request" in err
    assert MARK not in "".join(answers)
    assert MARK not in out + err


def test_no_secret_is_in_what_a_crash_leaves(start: Callable[[str, str], Server]) -> None:
    server = start("debug", "text")
    send_secrets(server)
    server.process.send_signal(signal.SIGABRT)
    status, out, err = server.end()
    assert status == -signal.SIGABRT
    assert MARK not in out + err


@pytest.mark.parametrize(
    ("arguments", "environment"),
    [
        (("--api-key", f"a blank {MARK}"), {}),
        (("--api-keys", MARK), {}),
        ((f"--api-keys={MARK}",), {}),
        (("--admin-api-key", ADMIN, "--api_key", MARK), {}),
        (("--otlp-endpoint", f"ftp://somebody:{MARK}@localhost"), {}),
        (("--otlp-endpoint", f"http://localhost:4318/?api-key={MARK}"), {}),
        ((), {"GREENROOM_API_KEY": f"a blank {MARK}"}),
        ((), {"GREENROOM_ADMIN_API_KEY": f"a line\n{MARK} b"}),
        ((), {"GREENROOM_OTLP_ENDPOINT": f"somebody:{MARK}@localhost"}),
    ],
)
def test_no_refused_setting_shows_a_secret(arguments: tuple[str, ...], environment: dict[str, str]) -> None:
    result = run_command("serve", *arguments, environment=environment)
    assert result.returncode == 2
    assert MARK not in result.stdout + result.stderr


@pytest.mark.parametrize(
    "line",
    [
        f'api_key = "{MARK}"',
        f'api_key = ["a blank {MARK}"]',
        f'admin_api_keys = ["{MARK}"]',
        f'api_key = ["{MARK}',
        f"api_key = {MARK}",
        f'otlp_endpoint = "localhost:{MARK}"',
    ],
)
def test_no_refused_configuration_shows_a_secret(tmp_path: Path, line: str) -> None:
    config = tmp_path / "config.toml"
    config.write_text(f"port = 0\n{line}\n")
    result = run_command("serve", "--config", str(config))
    assert result.returncode == 2
    assert MARK not in result.stdout + result.stderr


@pytest.mark.parametrize(
    ("command", "token"),
    [
        (("doctor", "--port", "0"), f"hf_{MARK}"),
        (("inspect", "no/such-model"), f"hf_{MARK}"),
        (("serve", "no/such-model", "--log-level", "debug"), f"hf_{MARK}"),
        (("serve", "no/such-model"), f"hf_{MARK}\x01\u20ac\n{MARK}"),
    ],
)
def test_no_command_shows_the_token_of_the_hub(command: tuple[str, ...], token: str) -> None:
    variables = {"HF_TOKEN": token, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0"}
    result = run_command(*command, environment=variables)
    assert MARK not in result.stdout + result.stderr


@pytest.mark.parametrize("command", ["chat", "top"])
@pytest.mark.parametrize("key", [KEY, f"{MARK}\n", f"\u20ac{MARK}"])
def test_no_client_shows_its_key(command: str, key: str) -> None:
    arguments = ("hello",) if command == "chat" else ("--once",)
    variables = {"GREENROOM_API_KEY": key}
    for url in ("http://127.0.0.1:9", f"http://somebody:{MARK}@127.0.0.1:9"):
        result = run_command(command, "--url", url, *arguments, environment=variables)
        assert result.returncode != 0
        assert MARK not in result.stdout + result.stderr
