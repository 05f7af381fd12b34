"""Adapters over a socket: loaded, listed, chosen by requests of every dialect, replaced and unloaded."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.api.core.access.access_policies import AccessPolicies
from server.api.core.access.api_keys import KeyRing, Keys
from server.api.core.service.service import Service
from server.engine.interface import AccessPolicy
from server.engine.text.codec import Codec
from server.setting_values import ModelAlias
from server.weights.adapters_on_request import AdaptersOnRequest
from tests.adapters import change_config, write_adapter
from tests.server.live.serving_adapters import AdapterRig, serving_adapters

CHAT = [{"role": "user", "content": "hi"}]
ROUTES = [  # path, and a body that it answers
    ("/v1/completions", {"prompt": "hi", "max_tokens": 2}),
    ("/v1/chat/completions", {"messages": CHAT, "max_tokens": 2}),
    ("/v1/responses", {"input": "hi", "max_output_tokens": 2}),
    ("/v1/messages", {"messages": CHAT, "max_tokens": 2}),
    ("/v1/embeddings", {"input": "hi"}),
    ("/api/chat", {"messages": CHAT, "stream": False, "options": {"num_predict": 2}}),
    ("/api/generate", {"prompt": "hi", "stream": False, "options": {"num_predict": 2}}),
    ("/api/embed", {"input": "hi"}),
    ("/score", {"text_1": "hi", "text_2": "ho"}),
    ("/rerank", {"query": "hi", "documents": ["ho"]}),
]


class AdapterServer:
    """A server with adapters in real files, and its requests."""

    def __init__(self, rig: AdapterRig, service: Service, folder: Path):
        self.rig, self.service, self.folder = rig, service, folder
        self.live, self.registry, self.url, self.used = rig.live, rig.registry, rig.url, rig.used

    def post(self, path: str, **body: Any) -> httpx.Response:
        return httpx.post(f"{self.url}{path}", json=body, timeout=30)

    def get(self, path: str) -> Any:
        return httpx.get(f"{self.url}{path}").raise_for_status().json()

    def load(self, name: str, value: float = 1.0, **body: Any) -> httpx.Response:
        write_adapter(self.folder / name, value)
        return self.post("/v1/load_lora_adapter", lora_name=name, lora_path=name, **body)

    def last_used(self) -> dict[str, float]:
        assert self.used[-1] is not None
        return self.rig.last_used()


@pytest.fixture
def server(codec: Codec, tmp_path: Path) -> Iterator[AdapterServer]:
    service = Service("1", aliases=[ModelAlias("gpt-*", "fake")])
    with serving_adapters(codec, tmp_path, service, num_slots=2) as rig:
        yield AdapterServer(rig, service, tmp_path)


def test_a_loaded_adapter_is_a_model_of_its_name(server: AdapterServer) -> None:
    answer = server.load("law")
    assert (answer.status_code, answer.text) == (200, "Success: LoRA adapter 'law' added successfully.")
    base, law = server.get("/v1/models")["data"]
    assert (base["id"], base["parent"], base["root"]) == ("fake", None, "fake")
    assert (law["id"], law["parent"], law["root"]) == ("law", "fake", str(server.folder / "law"))
    assert server.get("/v1/models/law") == law


@pytest.mark.slow
@pytest.mark.parametrize(("path", "body"), ROUTES)
def test_every_dialect_takes_an_adapter_for_its_model_and_replies_with_its_name(
    server: AdapterServer, path: str, body: dict[str, Any]
) -> None:
    server.load("law")
    answer = server.post(path, model="law", **body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["model"] == "law"
    assert server.last_used() == {"law": 1.0}


@pytest.mark.slow
@pytest.mark.parametrize(("path", "body"), ROUTES)
def test_adapters_are_mixed_on_top_of_any_model(server: AdapterServer, path: str, body: dict[str, Any]) -> None:
    server.load("law")
    server.load("code")
    adapters = [{"name": "code", "weight": 0.25}]
    assert server.post(path, model="law", adapters=adapters, **body).json()["model"] == "law"
    assert server.last_used() == {"law": 1.0, "code": 0.25}
    server.post(path, model="gpt-5", adapters=[{"name": "code"}], **body).raise_for_status()
    assert server.last_used() == {"code": 1.0}


def test_requests_for_the_base_model_run_without_adapters(server: AdapterServer) -> None:
    server.load("law")
    server.post("/v1/completions", model="fake", prompt="hi", max_tokens=2).raise_for_status()
    server.post("/v1/completions", prompt="hi", max_tokens=2).raise_for_status()
    assert set(server.used) == {None}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("adapters", "param", "message"),
    [
        ([{"name": "none"}], "adapters", "there is no adapter 'none'"),
        ([{"name": "law"}, {"name": "law"}], "adapters", "'law' is chosen twice"),
        ([{"name": "law", "weight": 1e9}], "adapters[0].weight", "less than or equal to 16"),
        ([{"name": "law", "weight": "1"}], "adapters[0].weight", "valid number"),
        ([{"weight": 1}], "adapters[0].name", "is required"),
        ([{"name": "law", "scale": 1}], "adapters[0].scale", "not permitted"),
        ("law", "adapters", "valid list"),
    ],
)
def test_wrong_mixtures_are_refused_by_name(server: AdapterServer, adapters: Any, param: str, message: str) -> None:
    server.load("law")
    answer = server.post("/v1/chat/completions", messages=CHAT, max_tokens=2, adapters=adapters)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param)
    assert message in error["message"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"lora_name": "law", "lora_path": "none"}, "lora_path", "can't be opened: No such file"),
        ({"lora_name": "law", "lora_path": "../law"}, "lora_path", "must not contain '..'"),
        ({"lora_name": "law", "lora_path": "/etc"}, "lora_path", "is outside"),
        ({"lora_name": "fake", "lora_path": "law"}, "lora_name", "is the name of a model"),
        ({"lora_name": "law"}, "lora_path", "is required"),
        ({"lora_path": "law"}, "lora_name", "is required"),
    ],
)
def test_what_can_not_be_loaded_is_refused_by_name(
    server: AdapterServer, body: dict[str, Any], param: str, message: str
) -> None:
    write_adapter(server.folder / "law")
    answer = server.post("/v1/load_lora_adapter", **body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param)
    assert message in error["message"]
    assert str(server.folder) not in answer.text
    assert [each["id"] for each in server.get("/v1/models")["data"]] == ["fake"]


def test_a_name_is_replaced_in_place_only_on_demand(server: AdapterServer) -> None:
    server.load("law")
    again = server.load("law", 2.0)
    assert (again.status_code, again.json()["error"]["param"]) == (400, "lora_name")
    assert server.load("law", 2.0, load_inplace=True).status_code == 200
    server.post("/v1/completions", model="law", prompt="hi", max_tokens=1).raise_for_status()
    weights = server.used[-1]
    assert weights is not None
    assert weights.adapters[0].adapter.linears["model.layers.0.self_attn.q_proj"][0].up[0, 0] == 2.0


def test_an_unloaded_adapter_is_no_model_any_more(server: AdapterServer) -> None:
    server.load("law")
    answer = server.post("/v1/unload_lora_adapter", lora_name="law")
    assert (answer.status_code, answer.text) == (200, "Success: LoRA adapter 'law' removed successfully.")
    assert server.post("/v1/completions", model="law", prompt="hi").status_code == 404
    again = server.post("/v1/unload_lora_adapter", lora_name="law")
    assert (again.status_code, again.json()["error"]["code"]) == (404, "model_not_found")


def test_a_request_whose_adapter_can_not_be_read_fails_and_never_runs_on_the_base_model(
    server: AdapterServer,
) -> None:
    server.load("law")
    shutil.rmtree(server.folder / "law")
    answer = server.post("/v1/completions", model="law", prompt="hi", max_tokens=1)
    assert answer.status_code == 500
    assert "the adapter 'law' can't be loaded" in answer.json()["error"]["message"]
    assert str(server.folder) not in answer.text
    assert server.used == []


@pytest.mark.slow
def test_more_adapters_than_fit_in_memory_serve_concurrent_requests(server: AdapterServer) -> None:
    names = [f"a{index}" for index in range(6)]
    for name in names:
        server.load(name)
    with httpx.Client(timeout=30) as client:
        body = {"prompt": ["hi"] * 3, "max_tokens": 8}
        for name in names * 2:
            client.post(f"{server.url}/v1/completions", json={"model": name, **body}).raise_for_status()
            assert server.last_used() == {name: 1.0}


def test_the_list_of_adapters_has_their_state_and_use(server: AdapterServer) -> None:
    server.load("law")
    server.load("code")
    server.post("/v1/completions", model="law", prompt="hi", max_tokens=1).raise_for_status()
    listed = server.get("/v1/adapters")
    law, code = listed["data"]
    assert (law["name"], law["state"], law["tier"], law["rank"], law["bytes"]) == ("law", "resident", "host", 4, 1024)
    assert law["requests"] == {"unfinished": 0, "total": 1}
    assert (code["state"], code["tier"], code["requests"]["total"]) == ("registered", "disk", 0)
    assert listed["folder"] == str(server.folder)
    assert listed["memory"]["budget_bytes"] == 2 * listed["memory"]["page_bytes"]


@pytest.mark.parametrize("path", ["/v1/load_lora_adapter", "/v1/unload_lora_adapter"])
def test_adapters_are_changed_with_an_admin_key_only(server: AdapterServer, path: str) -> None:
    server.service.keys = Keys(KeyRing(["user"]), KeyRing(["admin"]))
    body = {"lora_name": "law", "lora_path": "law"}
    for key, status in (("user", 403), ("other", 401)):
        answer = httpx.post(f"{server.url}{path}", json=body, headers={"Authorization": f"Bearer {key}"})
        assert answer.status_code == status


def test_a_server_without_adapters_or_variants_lists_none(server: AdapterServer) -> None:
    server.live.model.adapters = server.live.model.directory = None
    assert server.get("/v1/adapters") == {"object": "adapters", "folder": None, "memory": None, "data": []}
    variants = server.get("/v1/experts/variants")
    assert variants == {"object": "list", "folder": None, "greenroom_base": None, "data": []}


def test_a_server_without_adapters_says_how_to_get_some(server: AdapterServer) -> None:
    server.live.model.adapters = server.live.model.directory = None
    answer = server.post("/v1/load_lora_adapter", lora_name="law", lora_path="law")
    assert (answer.status_code, answer.json()["error"]["message"]) == (
        400,
        "This server loads no adapters: start it with --adapters-dir.",
    )
    answer = server.post("/v1/completions", prompt="hi", adapters=[{"name": "law"}])
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "adapters")


def test_the_folders_that_can_be_loaded_are_listed_for_administrators(server: AdapterServer) -> None:
    write_adapter(server.folder / "law", 1.0)
    write_adapter(server.folder / "team" / "code", 1.0)
    assert server.get("/v1/folders") == {"object": "folders", "adapters": ["law", "team/code"], "variants": None}
    server.service.keys = Keys(KeyRing(["user"]), KeyRing(["admin"]))
    found = [httpx.get(f"{server.url}/v1/folders", headers={"x-api-key": key}) for key in ("wrong", "user", "admin")]
    assert [answer.status_code for answer in found] == [401, 403, 200]


@pytest.fixture
def on_request(server: AdapterServer) -> AdapterServer:
    """The server, which loads an adapter when a request names its folder."""
    server.live.model.adapters_on_request = AdaptersOnRequest(server.registry, server.folder)
    write_adapter(server.folder / "law")
    return server


@pytest.mark.slow
@pytest.mark.parametrize(("path", "body"), [*ROUTES, ("/tokenize", {"prompt": "hi"})])
def test_every_route_of_models_loads_an_adapter_at_its_first_use(
    on_request: AdapterServer, path: str, body: dict[str, Any]
) -> None:
    answer = on_request.post(path, model="law", **body)
    assert answer.status_code == 200, answer.text
    assert on_request.registry.names() == ["law"]


def test_requests_that_need_the_same_adapter_load_it_once(
    on_request: AdapterServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads, load = list[str](), on_request.registry.load
    monkeypatch.setattr(on_request.registry, "load", lambda *names: loads.append(names[0]) or load(*names))

    async def scenario() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=on_request.url, timeout=30) as client:
            named = {"model": "law", "prompt": "hi", "max_tokens": 2}
            mixed = {"prompt": "hi", "max_tokens": 2, "adapters": [{"name": "law"}]}
            return await asyncio.gather(*(client.post("/v1/completions", json=body) for body in (named, mixed) * 4))

    assert [answer.status_code for answer in asyncio.run(scenario())] == [200] * 8
    assert loads == ["law"]


def test_an_unknown_name_is_not_found_and_leaves_no_trace(on_request: AdapterServer) -> None:
    for name in ("none", "law/", "../law"):
        answer = on_request.post("/v1/completions", model=name, prompt="hi")
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
    assert on_request.registry.names() == []


def test_a_broken_adapter_is_one_sentence_of_a_bad_request(on_request: AdapterServer) -> None:
    change_config(on_request.folder / "law", use_dora=True)
    answer = on_request.post("/v1/completions", model="law", prompt="hi")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "model")
    message = answer.json()["error"]["message"]
    assert message.startswith("the adapter 'law' can't be loaded: law/adapter_config.json: 'use_dora' is set, but DoRA")
    assert str(on_request.folder) not in message


def test_a_key_loads_only_what_its_policy_allows_and_adds(on_request: AdapterServer) -> None:
    for name in ("code", "safety"):
        write_adapter(on_request.folder / name)
    on_request.service.policies = AccessPolicies({"default": AccessPolicy("default", ("code",), (("safety", 1.0),))})
    assert on_request.post("/v1/completions", model="law", prompt="hi").status_code == 404
    assert on_request.registry.names() == ["safety"]
    assert on_request.post("/v1/completions", model="code", prompt="hi", max_tokens=2).status_code == 200
    assert on_request.last_used() == {"code": 1.0, "safety": 1.0}
