"""The model ``auto`` of a real server: the bundled model, and adapters that PEFT has written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

from tests.adapters import make_adapter
from tests.e2e.processes import Server, serving
from tests.e2e.routing_accuracy import score_routing

BUNDLED = Path(__file__).parents[2] / "server" / "demo" / "model"
EXAMPLES = {
    "law": [
        "Section 12-301. The Mayor shall issue rules to carry out the provisions of this chapter.",
        "(a) A person who violates subsection (b) shall be fined not more than $500, or imprisoned.",
        "The Council shall appoint a Board, whose members serve for a term of 3 years.",
    ],
    "cooking": [
        "Ingredients: 2 cups flour, 1 teaspoon salt, 3 eggs, 1 cup sugar. Preheat the oven to 350 degrees.",
        "Melt the butter in a large pan, add the onions, and cook until they are soft.",
        "Chicken soup\n\n1 chicken\n2 carrots\n1 onion\n\nSimmer for one hour and season with pepper.",
    ],
    "python": [
        "def add(a, b):\n    return a + b\n",
        "import os\n\nclass Reader:\n    def __init__(self, path):\n        self.path = path\n",
        "for index, value in enumerate(values):\n    if value is None:\n        raise ValueError(index)\n",
    ],
}
TEXTS = [
    ("(c) The Director may suspend a license if the licensee fails to comply with section 47-2001.", "law"),
    ("Beat the eggs with the sugar, stir in the flour and bake for 30 minutes.", "cooking"),
    ("class Counter:\n    def __init__(self):\n        self.count = 0\n", "python"),
    ("1 tablespoon olive oil\n2 cloves garlic\n1 can tomatoes\n\nHeat the oil in a pan.", "cooking"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three adapters; the examples of the last are in its folder."""
    folder = tmp_path_factory.mktemp("adapters")
    make_adapter(BUNDLED, folder / "law", r=2)
    for name in ("cooking", "python"):
        shutil.copytree(folder / "law", folder / name)
    (folder / "python" / "routing.json").write_text(json.dumps({"examples": EXAMPLES["python"]}))
    return folder


@pytest.fixture(scope="module")
def routed(folder: Path) -> Iterator[Server]:
    with serving("--adapters-dir", str(folder), "--adapter", f"python={folder / 'python'}") as server:
        for name in ("law", "cooking"):
            body = {"lora_name": name, "lora_path": name, "examples": EXAMPLES[name]}
            httpx.post(f"{server.url}/v1/load_lora_adapter", json=body, timeout=60).raise_for_status()
        yield server


def test_each_text_runs_with_the_adapter_of_its_domain_and_is_counted(routed: Server) -> None:
    result = score_routing(routed.url, TEXTS)
    assert result.by_domain() == {"law": 1.0, "cooking": 1.0, "python": 1.0}
    assert (result.accuracy, result.majority) == (1.0, 0.5)
    assert routed.total("adapter_routed_requests_total", 'adapter="cooking"') == 2
    assert routed.total("adapter_routed_requests_total", 'adapter="greenroom-demo"') == 0
    assert routed.total("adapter_requests_total", 'adapter="cooking"') == 2


def test_the_text_is_that_of_the_chosen_adapter_and_packages_keep_the_reason(routed: Server) -> None:
    with routed.client() as client:
        prompt, name = TEXTS[0]
        auto, named = (
            client.completions.create(model=model, prompt=prompt, max_tokens=12, temperature=0)
            for model in ("auto", name)
        )
    assert (auto.model, auto.choices[0].text) == (name, named.choices[0].text)
    assert auto.model_extra is not None
    assert auto.model_extra["greenroom"]["routing"]["model"] == name


def test_arrow_mixes_adapters_by_token_and_tells_their_mean_weights(routed: Server) -> None:
    routing = {"method": "arrow", "top_k": 2, "adapters": ["law", "cooking", "python"]}
    with routed.client() as client:
        reply = client.completions.create(
            model="auto", prompt=TEXTS[0][0], max_tokens=6, temperature=0, extra_body={"routing": routing}
        )
        *chunks, last = client.completions.create(
            model="auto",
            prompt=TEXTS[0][0],
            max_tokens=6,
            temperature=0,
            stream=True,
            extra_body={"routing": routing, "return_adapters": True},
        )
    assert reply.model_extra is not None
    weights = reply.model_extra["greenroom"]["routing"]["weights"]
    assert weights.keys() == {"law", "cooking", "python"}
    assert sum(weights.values()) == pytest.approx(1, abs=1e-4)
    assert last.model_extra is not None
    assert sum(last.model_extra["greenroom"]["routing"]["weights"].values()) == pytest.approx(1, abs=1e-4)
    choices = [choice.model_extra or {} for chunk in [*chunks, last] for choice in chunk.choices]
    tokens = [token for choice in choices for token in choice["adapters"]]
    assert tokens == [{"cooking": 0.5, "law": 0.5}] * 6  # all three are alike, and the first two by name are chosen
    assert routed.total("adapter_routed_tokens_total", 'adapter="law"') > 0
    assert routed.total("adapter_tokens_total", 'adapter="law"') > 0


def test_small_talk_runs_on_the_base_model(routed: Server) -> None:
    with routed.client() as client:
        reply = client.chat.completions.create(
            model="auto", messages=[{"role": "user", "content": "Hello! How are you?"}], max_tokens=4
        )
    assert reply.model == "greenroom-demo"


def test_a_prompt_that_is_too_long_is_refused(routed: Server) -> None:
    with routed.client() as client, pytest.raises(openai.BadRequestError, match="maximum context length"):
        client.completions.create(model="auto", prompt=[5] * 5000, max_tokens=4)
