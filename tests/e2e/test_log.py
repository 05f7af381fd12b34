"""The log of the real command as JSON."""

from __future__ import annotations

import json

import httpx

from tests.e2e.processes import serving


def test_every_line_is_an_object_and_one_is_of_the_request() -> None:
    with serving("--log-format", "json", "--log-prompts") as server:
        body = {"prompt": "Once\x1b", "max_tokens": 3, "ignore_eos": True}
        answer = httpx.post(f"{server.url}/v1/completions", json=body, headers={"X-Request-Id": "mine"})
        assert answer.status_code == 200
        status, _, err = server.interrupt()
    assert status == 0
    lines = [json.loads(line) for line in err.splitlines()]
    assert all({"timestamp", "level", "logger", "message"} <= line.keys() for line in lines)
    [line] = [line for line in lines if line["message"] == "request"]
    assert (line["request_id"], line["completion_tokens"], line["finish_reasons"]) == ("mine", 3, ["length"])
    assert line["prompts"][0].endswith("Once\x1b")
    assert lines[-1]["message"] == "stopped"
