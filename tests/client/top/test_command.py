"""`greenroom top --once`, and errors."""

from __future__ import annotations

import argparse
import json
import re

import pytest

from client.top.command import add_arguments, run
from tests.client.bodies import ADAPTERS, KEY_HINT, REFUSAL, REQUESTS, SNAPSHOT, STATE, VARIANTS, event
from tests.client.scripted import ScriptedReply, ScriptedServer

UPDATE = {"residency": [[4, 0, 1]], "tokens": [[4, 0, 7]], "pinned": None, "balance": None, **STATE}
LISTED = ScriptedReply(json.dumps(REQUESTS).encode())
FRAMES = ScriptedReply(event(SNAPSHOT, "snapshot") + event(UPDATE, "update"), is_stream=True)


def top(*words: str) -> int:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return run(parser.parse_args(words))


def test_once_prints_a_frame(
    scripted: ScriptedServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    scripted.replies = {"/v1/experts/stream": [FRAMES], "/v1/requests": [LISTED] * 2}
    assert top("--once", "--url", scripted.url, "--interval", "0.1") == 0
    out, err = capsys.readouterr()
    lines = [line.rstrip() for line in out.splitlines()]
    assert err == ""
    assert lines[0] == f"tiny at {scripted.url}"
    assert "trunk 25%, experts 19%  8.0 KiB of 16.0 KiB" in lines[1]
    assert "3 of 4 slots, 1 pinned  3.0 KiB of 4.0 KiB" in lines[2]
    assert "2 of 6 experts" in lines[3]
    assert re.split(" {2,}", lines[4]) == ["hit ratio 50.0 % (optimal 75.0 %)", "read 0 B/s (8.0 KiB)", "stall 0 %"]
    assert re.split(" {2,}", lines[5]) == ["0.0 tokens/s (prompt 0.0)", "1 running, 0 waiting", "KV cache 25 %"]
    assert lines[6] == "load max/mean 2.0 in layer 1 (variation 0.50), 1 dead (1/0), 0 overloaded"
    assert re.split(" {2,}", lines[7]) == ["request", "state", "prompt", "output", "tokens/s", "age", "stalled"]
    assert re.split(" {2,}", lines[8]) == ["chat 5a0c1", "decode", "24", "38 / 256", "-", "2.1 s", "0.2 s"]
    assert lines[9:11] == ["   1 ····▒▒▒▒████", "   4 ▒▒▒▒····▒▒▒▒"]


def test_once_prints_variants_and_adapters(
    scripted: ScriptedServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    scripted.replies = {
        "/v1/experts/stream": [FRAMES],
        "/v1/requests": [LISTED] * 2,
        "/v1/experts/variants": [ScriptedReply(json.dumps(VARIANTS).encode())],
        "/v1/adapters": [ScriptedReply(json.dumps(ADAPTERS).encode())],
    }
    assert top("--once", "--view", "weights", "--url", scripted.url, "--interval", "0.1") == 0
    lines = [re.split(" {2,}", line.strip()) for line in capsys.readouterr().out.splitlines()]
    assert lines[-3:] == [
        ["model", "kind", "state", "tier", "size", "running", "requests", "tokens"],
        ["code", "adapter", "running", "host", "2.0 KiB", "1", "3", "5,678"],
        ["tiny:law", "variant", "loaded", "12 of 48 in memory", "4.0 KiB", "0", "7", "1,234"],
    ]


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refusal_is_one_line(scripted: ScriptedServer, capsys: pytest.CaptureFixture[str], status: int) -> None:
    scripted.replies = {"/v1/experts/stream": [ScriptedReply(json.dumps(REFUSAL).encode(), status=status)]}
    assert top("--once", "--url", scripted.url) == 1
    end = f"; {KEY_HINT}" if status == 401 else "."
    assert capsys.readouterr() == ("", f"greenroom: 'top_p' is wrong{end}\n")


def test_an_unreachable_server(free_port: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert top("--once", "--url", f"127.0.0.1:{free_port}") == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"greenroom: no server responds at http://127.0.0.1:{free_port}: ")
    assert err.count("\n") == 1


def test_without_a_terminal_the_error_suggests_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert top() == 2
    assert capsys.readouterr().err == "greenroom: top needs a terminal; use --once to print one frame\n"


@pytest.mark.parametrize("interval", ["0", "61", "nan", "fast"])
def test_an_invalid_interval_is_refused(interval: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        top("--once", "--interval", interval)
    assert ended.value.code == 2
    assert interval in capsys.readouterr().err
