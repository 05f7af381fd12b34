"""The routes that describe the model, and those that would change it, in-process."""

from __future__ import annotations

import pytest

from server.engine.interface import ModelCard
from tests.chat_formats import FAMILIES


@pytest.fixture
def described(fake):
    fake.service.model.card = ModelCard(
        "tiny_moe",
        4096,
        host_bytes=lambda: 1024,
        device_bytes=lambda: 512,
        format="gguf",
        weights="Q4_K_M",
        num_parameters=30_532_122_624,
        licence="apache-2.0",
        metadata={"tiny_moe.expert_count": 128},
    )
    return fake


def test_the_model_is_listed_with_a_tag(described, ask):
    (model,) = ask("GET", "/api/tags").json()["models"]
    assert model["name"] == model["model"] == "org/tiny:latest"
    assert (model["size"], model["modified_at"]) == (4096, "2023-11-14T22:13:20Z")
    details = model["details"]
    assert (details["format"], details["families"]) == ("gguf", ["tiny_moe"])
    assert (details["parameter_size"], details["quantization_level"]) == ("30.5B", "Q4_K_M")


def test_a_name_with_a_tag_is_listed_as_it_is(fake, ask):
    fake.service.model.name = "tiny:30b"
    (model,) = ask("GET", "/api/tags").json()["models"]
    assert model["name"] == "tiny:30b"


def test_the_running_model_has_its_memory(described, ask):
    (model,) = ask("GET", "/api/ps").json()["models"]
    assert (model["size"], model["size_vram"], model["context_length"]) == (1536, 512, 64)


@pytest.mark.parametrize("field", ["model", "name"])
def test_a_model_is_shown(described, post, field):
    shown = post("/api/show", {field: "org/tiny:latest"}).json()
    assert shown["model_info"]["general.architecture"] == "tiny_moe"
    assert shown["model_info"]["tiny_moe.context_length"] == 64
    assert shown["model_info"]["tiny_moe.expert_count"] == 128
    assert shown["model_info"]["general.parameter_count"] == 30_532_122_624
    assert shown["license"] == "apache-2.0"
    assert shown["capabilities"] == ["completion"]
    assert shown["parameters"].splitlines()[0].split() == ["temperature", "1"]


def test_capabilities_are_those_of_the_template(fake, post):
    fake.codec.chat_traits = FAMILIES["hermes"].traits
    assert post("/api/show", {}).json()["capabilities"] == ["completion", "thinking"]


def test_an_unknown_model_is_not_shown(post):
    response = post("/api/show", {"model": "other"})
    assert (response.status_code, "does not exist" in response.json()["error"]) == (404, True)


def test_the_version_is_that_of_the_api(ask):
    version = ask("GET", "/api/version").json()
    assert version["greenroom"] == "1.2.3"
    assert [part.isdecimal() for part in version["version"].split(".")] == [True] * 3


@pytest.mark.parametrize("path", ["/", "/api/version", "/api/tags"])
def test_clients_find_the_server_by_head(ask, path):
    response = ask("HEAD", path)
    assert (response.status_code, response.content) == (200, b"")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/api/pull"),
        ("POST", "/api/push"),
        ("POST", "/api/create"),
        ("POST", "/api/copy"),
        ("DELETE", "/api/delete"),
    ],
)
def test_models_are_not_managed(ask, method, path):
    response = ask(method, path, json={"model": "org/tiny"})
    assert response.status_code == 501
    assert response.json()["error"].startswith("This server serves the model that it was started with")


def test_a_model_that_is_being_loaded(fake, ask):
    fake.service.model = None
    response = ask("GET", "/api/tags")
    assert (response.status_code, "still loading" in response.json()["error"]) == (503, True)
