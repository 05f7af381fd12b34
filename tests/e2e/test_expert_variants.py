"""Expert variants on the real command: loaded, served, replaced and unloaded while requests run."""

from __future__ import annotations

import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch

from server.model.checkpoint.locate import BUNDLED
from tests.e2e.processes import Server, serving
from tests.server.model.variants import other, read_tensors, save_variant

BASE = "greenroom-demo"
PROMPT = "Once upon a time there was a"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two variants of the bundled model, whose last layers' experts are other random ones."""
    folder, tensors = tmp_path_factory.mktemp("experts"), read_tensors(BUNDLED)
    for seed, name in enumerate(("law", "code")):
        changed = other(tensors, lambda name: re.search(r"layers\.[345]\.mlp\.experts\.", name) is not None, seed)
        save_variant(folder / name, changed)
    broken = {name: torch.full_like(tensor, torch.nan) for name, tensor in list(changed.items())[:3]}
    save_variant(folder / "broken", broken)
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    with serving("--host-expert-memory", "50%", "--experts-dir", str(folder), "--dtype", "float32") as running:
        yield running


@pytest.fixture
def http(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as http:
        yield http
        for variant in http.get("/v1/experts/variants").json()["data"]:
            http.delete(f"/v1/experts/variants/{variant['name']}")


def load(http: httpx.Client, name: str, path: str | None = None) -> dict[str, Any]:
    answer = http.post("/v1/experts/load", json={"name": name, "path": path or name})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def complete(http: httpx.Client, model: str, **body: Any) -> dict[str, Any]:
    asked = {"model": model, "prompt": PROMPT, "max_tokens": 12, "temperature": 0, "logprobs": 1, **body}
    answer = http.post("/v1/completions", json=asked)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def texts(http: httpx.Client, *models: str) -> list[str]:
    return [complete(http, model)["choices"][0]["text"] for model in models]


def test_a_variant_is_a_model_of_its_own(http: httpx.Client, server: Server) -> None:
    loaded = load(http, "law")
    assert (loaded["model"], loaded["layers"], loaded["experts"]) == (f"{BASE}:law", [3, 4, 5], 48)
    reply = complete(http, f"{BASE}:law")
    assert reply["model"] == f"{BASE}:law"
    own, law = texts(http, BASE, f"{BASE}:law")
    assert own != law == reply["choices"][0]["text"]
    with server.client() as client:
        cards = {card.id: card.model_dump() for card in client.models.list()}
    assert cards[f"{BASE}:law"]["parent"] == BASE
    listed = http.get("/v1/experts/variants").json()["data"][0]
    assert listed["requests"]["total"] == 2
    assert listed["tokens"] > 0


def test_variants_and_the_base_in_one_batch_write_what_each_writes_alone(http: httpx.Client) -> None:
    models = [BASE, f"{BASE}:law", f"{BASE}:code"]
    load(http, "law")
    load(http, "code")
    alone = texts(http, *models)
    assert len(set(alone)) == 3
    found: dict[int, str] = {}

    def ask(index: int) -> None:
        with httpx.Client(base_url=http.base_url, timeout=60) as own:
            found[index] = texts(own, models[index % 3])[0]

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[index] for index in range(9)] == alone * 3


def test_a_prefix_of_another_variant_is_not_reused(http: httpx.Client) -> None:
    load(http, "law")
    prompt = PROMPT * 12
    fresh = complete(http, f"{BASE}:law", prompt=prompt)
    complete(http, BASE, prompt=prompt)
    again = complete(http, f"{BASE}:law", prompt=prompt)
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
    assert again["choices"][0]["text"] == fresh["choices"][0]["text"]
    load(http, "law", "code")
    other_version = complete(http, f"{BASE}:law", prompt=prompt)
    assert not (other_version["usage"].get("prompt_tokens_details") or {}).get("cached_tokens")


def test_a_running_request_ends_with_the_version_that_it_began_with(http: httpx.Client, server: Server) -> None:
    load(http, "law")
    wanted = complete(http, f"{BASE}:law", max_tokens=400, ignore_eos=True, logprobs=None)["choices"][0]["text"]
    with server.client() as client:
        stream = client.completions.create(
            model=f"{BASE}:law",
            prompt=PROMPT,
            max_tokens=400,
            temperature=0,
            stream=True,
            extra_body={"ignore_eos": True},
        )
        pieces = [next(iter(stream)).choices[0].text]
        load(http, "law", "code")
        assert http.delete("/v1/experts/variants/law").status_code == 200
        pieces += [chunk.choices[0].text for chunk in stream if chunk.choices]
    assert "".join(pieces) == wanted
    with server.client() as client, pytest.raises(openai.NotFoundError):
        client.completions.create(model=f"{BASE}:law", prompt=PROMPT)


def test_a_failed_load_leaves_the_old_one_serving(http: httpx.Client) -> None:
    load(http, "law")
    before = texts(http, f"{BASE}:law")
    answer = http.post("/v1/experts/load", json={"name": "law", "path": "broken"})
    assert answer.status_code == 400
    assert "holds NaN or infinity" in answer.json()["error"]["message"]
    assert texts(http, f"{BASE}:law") == before


def test_what_cannot_be_loaded_is_refused_with_a_sentence(http: httpx.Client, folder: Path) -> None:
    link = folder / "link"
    link.unlink(missing_ok=True)
    link.symlink_to(BUNDLED)
    for path, message in {
        "../law": "must not contain '..'",
        "/etc": "is outside",
        "none": "can't be opened",
        "link": "is a link out of",
        "law\0": "is no path",
    }.items():
        answer = http.post("/v1/experts/load", json={"name": "law", "path": path})
        assert answer.status_code == 400, path
        assert message in answer.json()["error"]["message"]
        assert str(folder) not in answer.text
    answer = http.post("/v1/experts/load", json={"name": "a:b", "path": "law"})
    assert answer.json()["error"]["param"] == "name"
    assert http.delete("/v1/experts/variants/none").status_code == 404


def test_metrics_and_the_overview_know_a_variant(http: httpx.Client) -> None:
    load(http, "law")
    complete(http, f"{BASE}:law")
    metrics = http.get("/metrics").text
    assert 'greenroom_expert_variant_requests_total{variant="law"} 1.0' in metrics
    assert 'greenroom_expert_variant_e2e_request_latency_seconds_count{variant="law"} 1.0' in metrics
    assert re.search(r'greenroom_expert_variant_lookups_total\{variant="law"\} [1-9]', metrics)
    assert re.search(r'greenroom_expert_variant_tokens_total\{variant="law"\} [1-9]', metrics)
    place = http.get("/v1/experts/3/0").json()
    ((version, residency),) = place["variants"].items()
    assert version.startswith("law@")
    assert residency in {"host", "disk"}
    assert http.get("/v1/experts/0/0").json()["variants"] == {}


def test_many_rounds_leave_handles_and_threads_as_they_were(http: httpx.Client, server: Server) -> None:
    load(http, "law")
    complete(http, f"{BASE}:law")
    process = Path(f"/proc/{server.process.pid}")
    counts = []
    for round_number in range(20):
        load(http, "law", "code" if round_number % 2 else "law")
        complete(http, f"{BASE}:law", max_tokens=2)
        counts.append((len(list((process / "fd").iterdir())), len(list((process / "task").iterdir()))))
    for early, late in zip(zip(*counts[:10], strict=True), zip(*counts[10:], strict=True), strict=True):
        assert min(late) <= max(early)  # a request that ends, or the recorder of the history, may hold one more
    assert http.delete("/v1/experts/variants/law").status_code == 200


def test_files_may_be_deleted_once_a_variant_is_unloaded(http: httpx.Client, folder: Path) -> None:
    shutil.copytree(folder / "law", folder / "copy")
    load(http, "copy")
    complete(http, f"{BASE}:copy")
    assert http.delete("/v1/experts/variants/copy").status_code == 200
    shutil.rmtree(folder / "copy")
    assert complete(http, BASE)["choices"][0]["text"]
