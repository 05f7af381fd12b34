"""Mixtures over a socket: loaded, listed, named as models in every dialect, and unloaded like adapters."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from tests.gates import write_mixture
from tests.server.live.test_adapters import AdapterServer, server
from tests.server.live.test_auto_routing import DIALECTS, events_of, routings_in

__all__ = ["server"]


@pytest.fixture
def mixed(server: AdapterServer) -> AdapterServer:
    write_mixture(server.folder / "mix", {"law": 1.0, "code": 2.0})
    server.post("/v1/load_lora_adapter", lora_name="mix", lora_path="mix").raise_for_status()
    return server


def test_a_loaded_mixture_is_a_model_of_its_name(mixed: AdapterServer) -> None:
    base, mix = mixed.get("/v1/models")["data"]
    assert (mix["id"], mix["parent"], mix["root"]) == ("mix", base["id"], str(mixed.folder / "mix"))
    assert mixed.get("/v1/adapters")["data"][0]["gate"]["adapters"] == ["law", "code"]


@pytest.mark.slow
@pytest.mark.parametrize(("path", "body"), DIALECTS)
def test_every_dialect_runs_with_the_gate_and_tells_its_choice(
    mixed: AdapterServer, path: str, body: dict[str, Any]
) -> None:
    answer = mixed.post(path, model="mix", stream=False, **body)
    assert answer.status_code == 200, answer.text
    routing = answer.json()["greenroom"]["routing"]
    assert answer.json()["model"] == "mix"
    assert (routing["method"], routing["model"], routing["top_k"]) == ("gate", "mix", 1)
    assert routing["adapters"] == ["mix:code", "mix:law"]
    assert routing["weights"].keys() == {"mix:law", "mix:code"}
    assert answer.headers["x-greenroom-routing"] == "mix; method=gate"
    weights = mixed.used[-1]
    assert weights is not None
    assert weights.chooser is not None
    assert weights.chooser.is_signed


@pytest.mark.slow
def test_a_stream_tells_it_too(mixed: AdapterServer) -> None:
    answer = mixed.post("/v1/completions", model="mix", prompt="hi", max_tokens=2, stream=True)
    first, *_ = routings_in(events_of(answer))
    assert first["reason"] == "Adapters are chosen for each token and layer, by the trained gate of 'mix'."


def test_embeddings_run_with_the_gate(mixed: AdapterServer) -> None:
    mixed.post("/v1/embeddings", model="mix", input="hi").raise_for_status()
    weights = mixed.used[-1]
    assert weights is not None
    assert weights.chooser is not None


def test_a_router_may_choose_a_mixture_by_the_prompt(mixed: AdapterServer) -> None:
    body = {"lora_name": "mix", "lora_path": "mix", "load_inplace": True, "examples": ["0123456789"]}
    mixed.post("/v1/load_lora_adapter", **body).raise_for_status()
    reply = mixed.post("/v1/completions", model="auto", prompt="0123456789", max_tokens=2).json()
    assert (reply["model"], reply["greenroom"]["routing"]["method"]) == ("mix", "embedding")
    weights = mixed.used[-1]
    assert weights is not None
    assert weights.chooser is not None


def test_options_of_the_router_are_refused(mixed: AdapterServer) -> None:
    answer = mixed.post("/v1/completions", model="mix", prompt="hi", routing={"method": "arrow"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "routing")


def test_the_access_log_has_the_method(mixed: AdapterServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    mixed.post("/v1/completions", model="mix", prompt="hi", max_tokens=2).raise_for_status()
    mixed.live.wait_until_left()
    logged = [vars(record)["fields"] for record in caplog.records if record.getMessage() == "request"]
    [fields] = [fields for fields in logged if fields.get("model")]
    assert (fields["model"], fields["routing_method"]) == ("mix", "gate")


def test_an_unloaded_mixture_is_no_model_any_more(mixed: AdapterServer) -> None:
    mixed.post("/v1/unload_lora_adapter", lora_name="mix").raise_for_status()
    assert mixed.post("/v1/completions", model="mix", prompt="hi").status_code == 404
    assert mixed.get("/v1/adapters")["data"] == []


def test_a_wrong_gate_is_refused_and_shows_no_folder(server: AdapterServer) -> None:
    write_mixture(server.folder / "mix", {"law": 1.0, "code": 2.0}, top_k=0)
    answer = server.post("/v1/load_lora_adapter", lora_name="mix", lora_path="mix")
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, "lora_path")
    assert error["message"].startswith("mix/gate_config.json: 'top_k' is 0")
    assert json.dumps(str(server.folder)) not in answer.text
