"""Policies over a socket, with real keys: what a key may name, what is added to it, and what is written down."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.api.core.access.access_policies import AccessPolicies
from server.api.core.access.api_keys import KeyRing, Keys, digest_of, key_id
from server.api.core.service.service import Service
from server.engine.interface import AccessPolicy
from server.engine.text.codec import Codec
from server.setting_values import ModelAlias
from tests.server.live.serving_adapters import AdapterRig, serving_adapters

FREE, LAWYER, SAFE, ADMIN = "free-key", "lawyer-key", "safe-key", "admin-key"
CHAT = [{"role": "user", "content": "hi"}]
LOADED = ["law", "law-2", "code", "safety"]


def digest(key: str) -> bytes:
    return bytes.fromhex(digest_of(key).removeprefix("sha256:"))


class LimitedServer:
    """A server with adapters in real files, keys and policies, and its requests."""

    def __init__(self, rig: AdapterRig, service: Service):
        self.service, self.registry, self.url, self.used = service, rig.registry, rig.url, rig.used
        self.last_used = rig.last_used

    def get(self, path: str, key: str) -> httpx.Response:
        return httpx.get(f"{self.url}{path}", headers={"Authorization": f"Bearer {key}"})

    def post(self, path: str, key: str, **body: Any) -> httpx.Response:
        return httpx.post(f"{self.url}{path}", json=body, headers={"Authorization": f"Bearer {key}"}, timeout=30)

    def complete(self, key: str, **body: Any) -> httpx.Response:
        return self.post("/v1/completions", key, prompt="hi", max_tokens=2, **body)

    def refusals(self) -> dict[tuple[str, str], int]:
        return {names: count for names, count in self.service.access_refusals.of(self.service.policies) if count}


@pytest.fixture
def server(codec: Codec, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Iterator[LimitedServer]:
    caplog.set_level(logging.INFO)
    policies = {
        "lawyer": AccessPolicy("lawyer", models=("law*",)),
        "safe": AccessPolicy("safe", adapters=(("safety", 0.5),)),
    }
    service = Service(
        "1",
        aliases=[ModelAlias("gpt-4", "fake"), ModelAlias("law-of-*", "fake")],
        keys=Keys(KeyRing([FREE, LAWYER, SAFE]), KeyRing([ADMIN])),
        policies=AccessPolicies(policies, {digest(LAWYER): "lawyer", digest(SAFE): "safe"}),
    )
    with serving_adapters(codec, tmp_path, service, num_slots=4, loaded=LOADED) as rig:
        yield LimitedServer(rig, service)


def audit_lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [
        {"action": record.getMessage(), **record.__dict__["fields"]}
        for record in caplog.records
        if record.name == "greenroom.audit"
    ]


def sentence(answer: httpx.Response) -> str:
    error = answer.json()["error"]
    return str(error if isinstance(error, str) else error["message"])


def names(answer: httpx.Response) -> list[str]:
    body = answer.raise_for_status().json()
    return [each["id"] for each in body["data"]] if "data" in body else [each["name"] for each in body["models"]]


def test_lists_hold_only_what_the_key_may_use(server: LimitedServer) -> None:
    assert names(server.get("/v1/models", LAWYER)) == ["law", "law-2"]
    assert names(server.get("/api/tags", LAWYER)) == ["law:latest", "law-2:latest"]
    assert names(server.get("/api/ps", LAWYER)) == []
    assert names(server.get("/v1/models", FREE)) == ["fake", "gpt-4", *LOADED]
    with httpx.Client(headers={"x-api-key": LAWYER, "anthropic-version": "2023-06-01"}) as client:
        assert names(client.get(f"{server.url}/v1/models")) == ["law", "law-2"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "hi"}),
        ("/v1/chat/completions", {"messages": CHAT}),
        ("/v1/responses", {"input": "hi"}),
        ("/v1/messages", {"messages": CHAT, "max_tokens": 2}),
        ("/v1/messages/count_tokens", {"messages": CHAT}),
        ("/v1/embeddings", {"input": "hi"}),
        ("/score", {"text_1": "a", "text_2": "b"}),
        ("/tokenize", {"prompt": "hi"}),
        ("/detokenize", {"tokens": [104]}),
        ("/api/chat", {"messages": CHAT}),
        ("/api/generate", {"prompt": "hi"}),
        ("/api/embed", {"input": "hi"}),
        ("/api/show", {}),
    ],
)
def test_a_name_that_the_key_may_not_use_is_as_one_that_does_not_exist(
    path: str, body: dict[str, Any], server: LimitedServer
) -> None:
    """The alias is a pattern of names that the policy allows, but it stands for the base model."""
    absent = server.post(path, LAWYER, model="absent", **body)
    for name in ("fake", "code", "gpt-4", "law-of-nature"):
        answer = server.post(path, LAWYER, model=name, **body)
        assert answer.status_code == absent.status_code == 404
        assert sentence(answer).replace(name, "absent") == sentence(absent)
    assert server.refusals() == {("lawyer", "model"): 4}


def test_a_limited_key_has_to_name_a_model_unless_it_may_use_the_base_model(server: LimitedServer) -> None:
    answer = server.complete(LAWYER)
    assert answer.status_code == 404
    assert answer.json()["error"]["message"] == "Name a model in 'model': this server serves 'law', 'law-2'."
    assert server.complete(LAWYER, model="law").json()["model"] == "law"
    assert server.get("/v1/models/fake", LAWYER).status_code == 404
    assert server.get("/v1/models/law", LAWYER).status_code == 200


def test_an_adapter_that_the_key_may_not_use_can_not_be_added(server: LimitedServer) -> None:
    absent = server.complete(LAWYER, model="law", adapters=[{"name": "absent"}])
    code = server.complete(LAWYER, model="law", adapters=[{"name": "code"}])
    assert code.status_code == absent.status_code == 400
    assert code.text.replace("code'", "absent'") == absent.text
    assert server.refusals() == {("lawyer", "adapter"): 1}
    assert server.complete(LAWYER, model="law", adapters=[{"name": "law-2"}]).status_code == 200


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "hi", "max_tokens": 2}),
        ("/v1/chat/completions", {"messages": CHAT, "max_tokens": 2}),
        ("/v1/responses", {"input": "hi", "max_output_tokens": 2}),
        ("/v1/messages", {"messages": CHAT, "max_tokens": 2}),
        ("/v1/embeddings", {"input": "hi"}),
        ("/api/generate", {"prompt": "hi", "stream": False, "options": {"num_predict": 2}}),
        ("/api/embed", {"input": "hi"}),
    ],
)
def test_a_required_adapter_is_added_to_requests_of_every_dialect(
    path: str, body: dict[str, Any], server: LimitedServer
) -> None:
    assert server.post(path, SAFE, model="fake", **body).status_code == 200
    assert server.last_used() == {"safety": 0.5}
    assert server.post(path, SAFE, model="law", **body).status_code == 200
    assert server.last_used() == {"law": 1.0, "safety": 0.5}


def test_a_required_adapter_counts_once_and_a_request_can_not_change_its_factor(server: LimitedServer) -> None:
    same = [{"name": "safety", "weight": 0.5}, {"name": "law", "weight": 2.0}]
    assert server.complete(SAFE, model="fake", adapters=same).status_code == 200
    assert server.last_used() == {"law": 2.0, "safety": 0.5}
    assert server.complete(SAFE, model="safety").status_code == 200
    assert server.last_used() == {"safety": 0.5}
    for weight in (0, -0.5, 1):
        answer = server.complete(SAFE, model="fake", adapters=[{"name": "safety", "weight": weight}])
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "adapters"
        assert "part of every request of this key" in answer.json()["error"]["message"]
    assert server.refusals() == {("safe", "adapter"): 3}


def test_a_required_adapter_that_is_not_loaded_is_an_error_and_no_fall_back(
    server: LimitedServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.registry.unload("safety")
    server.used.clear()
    answer = server.complete(SAFE, model="fake")
    assert answer.status_code == 503
    assert "the adapter 'safety', which every request of this key uses, is not loaded" in answer.text
    assert server.used == []
    assert server.refusals() == {("safe", "required_adapter"): 1}
    assert audit_lines(caplog)[-1]["reason"] == "required_adapter"


def test_the_required_adapters_count_towards_the_most_that_a_request_may_use(server: LimitedServer) -> None:
    answer = server.complete(SAFE, model="fake", adapters=[{"name": f"a{number}"} for number in range(16)])
    assert answer.status_code == 400
    assert "a request may use at most 15 adapters beside the 1 of its key" in answer.text


def test_other_keys_are_not_limited_and_run_without_weights(server: LimitedServer) -> None:
    for key in (FREE, ADMIN):
        assert server.complete(key, model="gpt-4").status_code == 200
        assert server.used[-1] is None


def test_the_default_policy_is_for_keys_that_have_no_other(server: LimitedServer) -> None:
    policies = server.service.policies
    default = AccessPolicy("default", models=("code",))
    server.service.policies = AccessPolicies({**policies.by_name, "default": default}, policies.names)
    assert [names(server.get("/v1/models", key)) for key in (FREE, ADMIN)] == [["code"], ["code"]]
    assert names(server.get("/v1/models", LAWYER)) == ["law", "law-2"]
    server.service.keys = Keys()
    assert names(httpx.get(f"{server.url}/v1/models")) == ["code"]


def test_a_refusal_is_a_line_of_the_audit_log_without_the_key(
    server: LimitedServer, caplog: pytest.LogCaptureFixture
) -> None:
    headers = {"x-api-key": LAWYER, "X-Request-Id": "mine"}
    httpx.post(f"{server.url}/v1/completions", json={"model": "fake", "prompt": "hi"}, headers=headers)
    assert audit_lines(caplog) == [
        {
            "action": "policy.refuse",
            "who": key_id(digest(LAWYER)),
            "outcome": "refused",
            "policy": "lawyer",
            "reason": "model",
            "model": "fake",
            "request_id": "mine",
        }
    ]
    assert LAWYER not in caplog.text


def test_what_an_administrator_loads_and_unloads_is_written_down(
    server: LimitedServer, caplog: pytest.LogCaptureFixture
) -> None:
    body = {"lora_name": "new", "lora_path": "law"}
    server.post("/v1/load_lora_adapter", ADMIN, **body)
    server.post("/v1/load_lora_adapter", ADMIN, **body)
    server.post("/v1/load_lora_adapter", ADMIN, **body, load_inplace=True)
    server.post("/v1/unload_lora_adapter", ADMIN, lora_name="new")
    lines = audit_lines(caplog)
    assert [(line["action"], line["outcome"], line["adapter"]) for line in lines] == [
        ("adapter.load", "done", "new"),
        ("adapter.load", "failed", "new"),
        ("adapter.replace", "done", "new"),
        ("adapter.unload", "done", "new"),
    ]
    assert {line["who"] for line in lines} == {key_id(digest(ADMIN))}
    assert "is loaded already" in lines[1]["error"]


def test_an_administrator_without_a_key_is_the_loopback(
    server: LimitedServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.service.keys = Keys()
    httpx.post(f"{server.url}/v1/unload_lora_adapter", json={"lora_name": "law"})
    assert audit_lines(caplog)[-1]["who"] == "loopback"
