"""Policies on the real command: forbidden experts, SIGHUP, prefix caches, the audit log."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.api.core.access.api_keys import digest_of
from server.model.checkpoint.locate import BUNDLED
from tests.e2e.processes import Server, run_command, serving, total
from tests.faults.test_signals import wait_for_line
from tests.server.model.variants import other, read_tensors, save_variant

BASE, VARIANT = "greenroom-demo", "greenroom-demo:other"
FREE, TENANT, TWIN, ADMIN = "free-key-1", "tenant-key-2", "twin-key-3", "admin-key-4"
PROMPT = "Once upon a time there was a"
FORBIDDEN = {0, 1, 2, 3}
FORBID = f"""
[policies.tenant]
keys = ["{digest_of(TENANT)}"]
models = ["{BASE}", "{BASE}:*"]
forbidden_experts = {{all = [0, 1], "0" = [2, 3]}}
[policies.twin]
keys = ["{digest_of(TWIN)}"]
forbidden_experts = {{"0" = [2, 3], all = [0, 1]}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, tensors = tmp_path_factory.mktemp("policies"), read_tensors(BUNDLED)
    (folder / "keys").write_text(f"{FREE}\n{TENANT}\n{TWIN}")
    (folder / "admin").write_text(ADMIN)
    save_variant(
        folder / "other", other(tensors, lambda name: re.search(r"layers\.5\.mlp\.experts\.", name) is not None)
    )
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    (folder / "policies.toml").write_text(FORBID)
    with serving(
        *("--api-key-file", str(folder / "keys"), "--admin-api-key-file", str(folder / "admin")),
        *("--policy-file", str(folder / "policies.toml"), "--experts-dir", str(folder)),
        *("--adapter-memory", "0"),  # the bundled ones
        *("--dtype", "float32", "--log-format", "json", "--log-level", "error"),
    ) as running:
        post(running, ADMIN, "/v1/experts/load", name="other", path="other").raise_for_status()
        yield running


def post(server: Server, key: str, path: str, /, **body: Any) -> httpx.Response:
    return httpx.post(f"{server.url}{path}", json=body, headers={"Authorization": f"Bearer {key}"}, timeout=100)


def complete(server: Server, key: str, **body: Any) -> dict[str, Any]:
    asked = {"model": BASE, "prompt": PROMPT, "max_tokens": 24, "temperature": 0, "ignore_eos": True, **body}
    found: dict[str, Any] = post(server, key, "/v1/completions", **asked).raise_for_status().json()
    return found


def used_experts(answer: dict[str, Any]) -> list[set[int]]:
    """Return the experts that the tokens of a completion chose, by layer."""
    tokens = answer["choices"][0]["experts"]
    return [{expert for layers in tokens for expert in layers[layer]} for layer in range(len(tokens[0]))]


def audit_lines(server: Server, action: str) -> list[dict[str, Any]]:
    wait_for_line(server, f'"{action}"', 1)
    server.log.seek(0)
    lines = [json.loads(line) for line in server.log.read().splitlines()]
    return [line for line in lines if line["logger"] == "greenroom.audit" and line["message"] == action]


@pytest.mark.parametrize("model", [BASE, VARIANT])
def test_tokens_of_the_key_never_choose_a_forbidden_expert(model: str, server: Server) -> None:
    free = used_experts(complete(server, FREE, model=model, return_experts=True))
    assert any(experts & {0, 1} for experts in free)
    first, *others = used_experts(complete(server, TENANT, model=model, return_experts=True))
    assert not first & FORBIDDEN
    assert not any(experts & {0, 1} for experts in others)
    assert any(experts & {2, 3} for experts in others)


def test_a_prefix_is_shared_by_keys_with_the_same_experts_only(server: Server) -> None:
    def cached(key: str) -> int:
        details = complete(server, key, prompt=PROMPT * 12)["usage"].get("prompt_tokens_details") or {}
        return int(details.get("cached_tokens", 0))

    assert cached(FREE) == 0
    assert cached(TENANT) == 0
    assert cached(TWIN) > 0


def test_sighup_puts_another_file_in_force_and_a_bad_one_changes_nothing(server: Server, folder: Path) -> None:
    file = folder / "policies.toml"

    def names() -> list[str]:
        found = httpx.get(f"{server.url}/v1/models", headers={"x-api-key": TENANT}).raise_for_status().json()
        return [model["id"] for model in found["data"]]

    def reload(text: str, action: str, count: int) -> dict[str, Any]:
        file.write_text(text)
        server.process.send_signal(signal.SIGHUP)
        wait_for_line(server, f'"{action}"', count)
        return audit_lines(server, action)[-1]

    try:
        assert names() == [BASE, VARIANT]
        changed = reload(FORBID.replace(f'["{BASE}", ', "["), "policy.change", 1)
        assert (changed["who"], changed["policy"], changed["models"]) == ("SIGHUP", "tenant", [f"{BASE}:*"])
        assert names() == [VARIANT]
        for name in (BASE, "absent"):
            assert post(server, TENANT, "/v1/completions", model=name, prompt=PROMPT).status_code == 404
        refused = ("policy_refusals_total", 'policy="tenant"', 'reason="model"')
        assert total(server.metrics(ADMIN), *refused) == 1
        failed = reload("[default]\nforbidden_experts = {all = [99]}\n", "policy.reload", 1)
        assert failed["outcome"] == "failed"
        assert "the policy default: forbidden_experts: no layer has an expert 99" in failed["error"]
        assert "cannot reload the policies" in wait_for_line(server, "cannot reload the policies", 1)
        assert names() == [VARIANT]
    finally:
        reload(FORBID, "policy.change", 2)
    assert names() == [BASE, VARIANT]


def test_pins_and_evictions_are_in_the_audit_log_at_every_level(server: Server) -> None:
    post(server, ADMIN, "/v1/experts/pin", experts=[[0, 1], [2, 3]]).raise_for_status()
    post(server, ADMIN, "/v1/experts/unpin", experts=[[0, 1], [2, 3]]).raise_for_status()
    post(server, ADMIN, "/v1/experts/evict", experts=[[0, 1]]).raise_for_status()
    who = digest_of(ADMIN)[: len("sha256:") + 12]
    pin = audit_lines(server, "experts.pin")[-1]
    assert (pin["who"], pin["outcome"], pin["experts"], pin["changed"]) == (who, "done", "0/1 2/3", 2)
    assert audit_lines(server, "experts.evict")[-1]["experts"] == "0/1"
    loaded = audit_lines(server, "variant.load")[-1]
    assert (loaded["who"], loaded["variant"], loaded["path"]) == (who, "other", "other")


def test_no_key_is_in_the_log(server: Server) -> None:
    server.log.seek(0)
    log = server.log.read()
    assert not [key for key in (FREE, TENANT, TWIN, ADMIN) if key in log]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[default]\nforbidden_experts = {all = [99]}\n", "no layer has an expert 99; experts are numbered from 0"),
        ("[default]\nadapters = [{name = 'safety'}]\n", "adds adapters, but this server loads no adapters"),
        ("[default]\nmodels = 'a'\n", "default.models: "),
    ],
)
def test_a_file_that_can_not_be_used_ends_the_start_with_a_sentence(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "policies.toml"
    file.write_text(text)
    done = run_command("serve", "--port", "0", "--policy-file", str(file), "--adapter-memory", "0")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"greenroom: --policy-file {file}: ")
    assert message in last
