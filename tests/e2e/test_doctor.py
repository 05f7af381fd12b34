"""The command `greenroom doctor`."""

from __future__ import annotations

import json
import socket

from tests.e2e.processes import run_command

NAMES = {
    "versions",
    "cores",
    "instructions",
    "kernels",
    "memory",
    "memory budget",
    "huge pages",
    "pinning",
    "open files",
    "devices",
    "hub",
    "port",
    "model",
    "layers",
    "disk",
    "memory plan",
}


def test_each_check_is_a_plain_line_and_the_last_is_the_command() -> None:
    words = ("doctor", "--port", "0", "--host-expert-memory", "25%")
    result = run_command(*words, environment={"FORCE_COLOR": ""}, fresh=True)
    assert (result.returncode, result.stderr) == (0, "")
    *checks, command = result.stdout.splitlines()
    assert {line[6:20].strip() for line in checks} == NAMES
    assert {line[:6].strip() for line in checks} <= {"ok", "warn"}
    assert "\x1b" not in result.stdout
    assert command.startswith("serve with: greenroom serve --port 0 --host-expert-memory 25%")


def test_a_failed_check_is_status_1_also_as_json() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        result = run_command("doctor", "./nowhere", "--json", "--port", port)
    assert (result.returncode, result.stderr) == (1, "")
    report = json.loads(result.stdout)
    failed = {check["name"]: check["message"] for check in report["checks"] if check["level"] == "fail"}
    assert not report["can_serve"]
    assert failed.keys() == {"port", "model"}
    assert "there is no folder ./nowhere" in failed["model"]
