"""The command `greenroom` with models of a local store of Ollama."""

from __future__ import annotations

import json
from collections.abc import Iterator

import ollama
import pytest

from tests.e2e.processes import Server, run_command, serving
from tests.gguf.models import FILES, TEMPLATE
from tests.gguf.ollama_store import add_model

MODEL = "ollama:tiny:30b"
STOP = "e"


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment variables with which Greenroom finds a store with one model."""
    store = tmp_path_factory.mktemp("store")
    parameters = {"stop": ["<|im_end|>", STOP], "temperature": 0}
    add_model(store, FILES / "qwen3moe.gguf", texts={"params": json.dumps(parameters), "license": "Apache"})
    return {"OLLAMA_MODELS": str(store)}


@pytest.fixture(scope="module")
def served(environment: dict[str, str]) -> Iterator[Server]:
    with serving(MODEL, environment=environment) as server:
        yield server


def test_ollamas_client_finds_the_model_under_the_name_that_it_has_in_ollama(served: Server) -> None:
    with ollama.Client(served.url) as client:
        assert [model.model for model in client.list().models] == ["tiny:30b"]
        shown = client.show("tiny:30b")
        reply = client.generate("tiny:30b", "the theatre", options={"num_predict": 4, "stop": ["\0"]})
    assert (shown.license, shown.template) == ("Apache", TEMPLATE)
    assert shown.parameters is not None
    assert f'"{STOP}"' in shown.parameters
    assert reply.eval_count == 4


def test_a_stop_of_the_manifest_ends_answers_unless_the_request_names_others(served: Server) -> None:
    prompt = {"model": "tiny:30b", "prompt": "the theatre in an", "max_tokens": 64}
    client = served.client()
    until_stop = client.completions.create(**prompt).choices[0]
    whole = client.completions.create(**prompt, stop=["\0"]).choices[0]
    assert STOP in whole.text
    assert (until_stop.text, until_stop.finish_reason) == (whole.text.partition(STOP)[0], "stop")


@pytest.mark.parametrize("command", ["inspect", "doctor", "verify"])
def test_other_commands_take_the_name_too(environment: dict[str, str], command: str) -> None:
    result = run_command(command, MODEL, environment=environment)
    assert result.returncode == 0, result.stderr
    assert "tiny:30b" in result.stdout + result.stderr
