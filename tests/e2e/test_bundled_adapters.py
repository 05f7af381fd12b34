"""The bundled adapters and the bundled variant, as a fresh clone serves them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.e2e.processes import Server, serving

BASE = "greenroom-demo"
NAMES = ["legal", "python", "recipes"]
MIXTURE = "mixture"
PROMPTS = {
    "legal": "(b) The Mayor shall issue rules to implement this section within 90 days, and may revoke a license if",
    "python": 'def read_lines(path):\n    """Return the lines of a file."""\n    with open(path) as file:\n',
    "recipes": "Beat the eggs with the sugar, stir in the flour and the butter, and bake in a moderate oven for",
}


@pytest.fixture(scope="module")
def fresh() -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.fixture
def http(fresh: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=fresh.url, timeout=60) as http:
        yield http


def complete(http: httpx.Client, model: str, prompt: str, **body: Any) -> dict[str, Any]:
    asked = {"model": model, "prompt": prompt, "max_tokens": 8, "temperature": 0, **body}
    answer = http.post("/v1/completions", json=asked)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def logprob(http: httpx.Client, model: str, prompt: str) -> float:
    """Return the sum of the logprobs of a prompt's tokens."""
    reply = complete(http, model, prompt, max_tokens=0, echo=True, logprobs=0)
    return float(sum(reply["choices"][0]["logprobs"]["token_logprobs"][1:]))


def test_the_adapters_are_models_from_the_start_and_nothing_was_computed(http: httpx.Client, fresh: Server) -> None:
    assert [card["id"] for card in http.get("/v1/models").json()["data"]] == [BASE, *sorted([*NAMES, MIXTURE]), "auto"]
    adapters = http.get("/v1/adapters").json()
    assert [each["name"] for each in adapters["data"]] == sorted([*NAMES, MIXTURE])
    assert adapters["memory"]["resident_bytes"] == 0
    assert fresh.total("prompt_tokens_total") == 0


@pytest.mark.parametrize("name", NAMES)
def test_auto_picks_the_adapter_of_the_domain(http: httpx.Client, name: str) -> None:
    assert complete(http, "auto", PROMPTS[name])["model"] == name


@pytest.mark.parametrize(
    ("questions", "model"),
    [
        (["How do I boil rice?"], "recipes"),
        (["def fibonacci(n):"], "python"),
        (["def fibonacci(n):", "How do I boil rice?"], "recipes"),
        (["How do I boil rice?", "And then?"], "recipes"),
        (["def add(a, b):\n    return a + b", "Tell me a story about a king."], BASE),
    ],
    ids=str,
)
def test_auto_follows_the_questions_of_a_chat(http: httpx.Client, questions: list[str], model: str) -> None:
    messages = [{"role": "user", "content": question} for question in questions]
    answer = http.post("/v1/chat/completions", json={"model": "auto", "messages": messages, "max_tokens": 1})
    assert answer.json()["model"] == model


def test_a_question_without_tools_is_not_answered_by_a_call(http: httpx.Client) -> None:
    """A third of such answers began with a call before its first token was masked."""
    messages = [{"role": "user", "content": "What is the weather in Paris?"}]
    body = {"model": BASE, "messages": messages, "n": 24, "seed": 1, "max_tokens": 12}
    choices = http.post("/v1/chat/completions", json=body).json()["choices"]
    assert not [choice for choice in choices if choice["message"]["content"].startswith("<")]


def test_each_adapter_is_another_model(http: httpx.Client) -> None:
    prompt = PROMPTS["legal"]
    assert len({logprob(http, model, prompt) for model in (BASE, MIXTURE, *NAMES)}) == 5


def test_the_gate_of_the_mixture_prefers_the_adapter_of_the_domain(http: httpx.Client, fresh: Server) -> None:
    shares = {name: complete(http, MIXTURE, prompt)["greenroom"]["routing"] for name, prompt in PROMPTS.items()}
    for name, routing in shares.items():
        assert max(routing["weights"], key=routing["weights"].get) == f"{MIXTURE}:{name}"
        assert sum(routing["weights"].values()) == pytest.approx(1, abs=1e-4)
    assert fresh.total("adapter_routed_tokens_total", f'adapter="{MIXTURE}:legal"') > 0


def test_the_variant_is_loaded_from_the_package(http: httpx.Client) -> None:
    loaded = http.post("/v1/experts/load", json={"name": "legal", "path": "legal"}).raise_for_status().json()
    assert loaded["model"] == f"{BASE}:legal"
    assert loaded["experts"] > 0
    prompt = PROMPTS["legal"]
    assert logprob(http, f"{BASE}:legal", prompt) != logprob(http, BASE, prompt)


def test_without_memory_for_adapters_the_model_is_served_alone() -> None:
    with serving("--adapter-memory", "0") as server:
        cards = httpx.get(f"{server.url}/v1/models").json()["data"]
    assert [card["id"] for card in cards] == [BASE]
