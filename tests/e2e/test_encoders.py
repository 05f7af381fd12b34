"""Encoders by the real command, on a real socket: embeddings, labels, and what they refuse."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from client import Client
from server.model.greenroom_moe import GreenroomMoeForImageClassification, GreenroomMoeForSequenceClassification
from tests.byte_tokenizer import save_byte_tokenizer
from tests.checkpoints import save_checkpoint
from tests.e2e.processes import Server, run_command, serving
from tests.families import make_config
from tests.server.model.greenroom_moe.test_greenroom_moe import config_of
from tests.vision import data_url, png

TEXTS = ["Who waits?", "Nobody waits here.", "x"]
LABELS = {0: "calm", 1: "glad", 2: "sad"}
TEXT = {"vocab_size": 257, "id2label": LABELS, "label2id": {name: place for place, name in LABELS.items()}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "texts"
    GreenroomMoeForSequenceClassification(config_of("expert_choice", capacity_factor=2.0, **TEXT)).save_pretrained(
        folder
    )
    save_byte_tokenizer(folder, None)
    return folder


@pytest.fixture(scope="module")
def texts(folder: Path) -> Iterator[Server]:
    with serving(str(folder), "--dtype", "float32", "--host-expert-memory", "1KiB", "--deterministic") as running:
        yield running


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "images"
    GreenroomMoeForImageClassification(config_of("soft", image_size=8, num_channels=3)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def images(image_folder: Path) -> Iterator[Server]:
    with serving(str(image_folder), "--dtype", "float32") as running:
        yield running


def post(server: Server, path: str, **body: Any) -> Any:
    return httpx.post(f"{server.url}{path}", json=body, timeout=60).json()


def test_the_openai_package_gets_the_same_embeddings_alone_and_together(texts: Server) -> None:
    with texts.client() as client:
        together = client.embeddings.create(model="texts", input=TEXTS, encoding_format="float")
        alone = [client.embeddings.create(model="texts", input=text, encoding_format="float") for text in TEXTS]
    assert [each.embedding for each in together.data] == [each.data[0].embedding for each in alone]
    assert {len(each.embedding) for each in together.data} == {32}


def test_labels_and_their_probabilities_are_those_of_transformers(texts: Server, folder: Path) -> None:
    model = GreenroomMoeForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    answer = post(texts, "/v1/classify", input=TEXTS)
    assert answer["labels"] == [*LABELS.values()]
    assert answer["usage"]["prompt_tokens"] == sum(map(len, TEXTS))
    for item, text in zip(answer["data"], TEXTS, strict=True):
        with torch.inference_mode():
            expected = model(torch.tensor([list(text.encode())])).logits[0].softmax(-1)
        np.testing.assert_allclose(item["probs"], expected, rtol=1e-4)
        assert item["label"] == LABELS[int(expected.argmax())]


@pytest.mark.parametrize("router_type", ["top_k", "soft"])
def test_the_other_routers_are_served_too(router_type: str, tmp_path: Path) -> None:
    model = GreenroomMoeForSequenceClassification(config_of(router_type, **TEXT)).eval()
    model.save_pretrained(tmp_path / "other")
    save_byte_tokenizer(tmp_path / "other", None)
    with serving(str(tmp_path / "other"), "--dtype", "float32") as running:
        (item,) = post(running, "/v1/classify", input=TEXTS[0])["data"]
    with torch.inference_mode():
        expected = model(torch.tensor([list(TEXTS[0].encode())])).logits[0].softmax(-1)
    np.testing.assert_allclose(item["probs"], expected, rtol=1e-4)


def test_its_experts_are_paged_and_counted(texts: Server) -> None:
    before = texts.total("expert_lookups_total", 'tier="disk"')
    usage = post(texts, "/v1/classify", input=TEXTS[0])["usage"]["greenroom"]
    assert usage["expert_requests"] == 3 * 6  # every expert of every layer
    assert 0 < usage["expert_misses"] == texts.total("expert_lookups_total", 'tier="disk"') - before


def test_an_image_is_classified_as_by_transformers(images: Server, image_folder: Path) -> None:
    model = GreenroomMoeForImageClassification.from_pretrained(image_folder, dtype=torch.float32).eval()
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    with torch.inference_mode():
        expected = model(torch.from_numpy(pixels / 255).float().permute(2, 0, 1).unsqueeze(0)).logits[0].softmax(-1)
    picture = data_url(png(Image.fromarray(pixels)))
    answer = post(images, "/v1/classify", input=[picture, picture])
    for item in answer["data"]:
        np.testing.assert_allclose(item["probs"], expected, rtol=1e-4)


def test_the_python_client_embeds_and_classifies(texts: Server) -> None:
    with Client(texts.url) as client:
        (vector,) = client.embed(TEXTS[0]).vectors
        (item,) = client.classify(TEXTS[0]).items
    assert sum(number * number for number in vector) == pytest.approx(1)
    assert set(item.probabilities) == set(LABELS.values())
    assert item.label == max(item.probabilities, key=lambda label: item.probabilities[label])


def test_the_terminal_chat_answers_with_the_label(texts: Server) -> None:
    with Client(texts.url) as client:
        (item,) = client.classify(TEXTS[0]).items
    ended = run_command("chat", TEXTS[0], "--url", texts.url)
    assert (ended.returncode, ended.stdout) == (0, f"{item.label}\n")


def test_models_tells_what_it_is_for(texts: Server) -> None:
    (card,) = httpx.get(f"{texts.url}/v1/models").json()["data"]
    assert (card["meta"]["tasks"], card["meta"]["labels"]) == (["embed", "classify"], [*LABELS.values()])


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}]}),
        ("/v1/completions", {"prompt": "Hi"}),
        ("/v1/responses", {"input": "Hi"}),
        ("/v1/messages", {"model": "texts", "max_tokens": 5, "messages": [{"role": "user", "content": "Hi"}]}),
        ("/api/generate", {"model": "texts", "prompt": "Hi"}),
    ],
)
def test_it_refuses_to_write_in_one_sentence(texts: Server, path: str, body: dict[str, Any]) -> None:
    answer = httpx.post(f"{texts.url}{path}", json=body)
    assert answer.status_code == 400
    assert "is an encoder, which writes no text; use /v1/embeddings or /v1/classify" in answer.text


def test_a_decoder_refuses_to_classify(server: Server) -> None:
    answer = httpx.post(f"{server.url}/v1/classify", json={"input": "Hi"})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith("this model has no labels; serve an encoder")


@pytest.mark.parametrize("given", ["Hi", [5, 6], "https://example.org/a.png", "data:image/png;base64,AAAA"])
def test_an_encoder_of_images_refuses_what_is_none(images: Server, given: Any) -> None:
    answer = httpx.post(f"{images.url}/v1/classify", json={"input": given})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "input"


def test_a_text_longer_than_the_context_is_refused(texts: Server) -> None:
    answer = httpx.post(f"{texts.url}/v1/classify", json={"input": "a" * 5000})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "context_length_exceeded"


@pytest.mark.parametrize(("side", "kept"), [("right", "aab"), ("left", "bbb")])
def test_a_long_text_is_cut_where_the_request_wants_it(texts: Server, side: str, kept: str) -> None:
    cut = post(texts, "/v1/classify", input="aa" + "b" * 5000, truncate_prompt_tokens=3, truncation_side=side)
    assert cut["usage"]["prompt_tokens"] == 3
    assert cut["data"] == post(texts, "/v1/classify", input=kept)["data"]


def test_ollamas_clients_learn_that_it_embeds(texts: Server) -> None:
    shown = httpx.post(f"{texts.url}/api/show", json={"model": "texts"}).json()
    assert shown["capabilities"] == ["embedding"]


def test_the_bundled_classifier_knows_a_recipe_from_a_statute() -> None:
    with serving("--model-type", "classify") as running:
        answer = post(
            running,
            "/v1/classify",
            model="greenroom-classifier",
            input=[
                "Beat the eggs with the sugar, add the flour and bake in a moderate oven for half an hour.",
                "The Secretary shall submit to the Committee a report under subsection (b) of this section.",
            ],
        )
    assert [item["label"] for item in answer["data"]] == ["recipes", "legal"]


def test_an_encoder_refuses_expert_variants_at_its_start(folder: Path) -> None:
    ended = run_command("serve", str(folder), "--experts-dir", str(folder))
    assert ended.returncode == 1
    assert "texts is an encoder, which takes no adapters and no expert variants" in ended.stderr


def test_a_model_of_another_type_than_asked_for_is_refused(folder: Path) -> None:
    ended = run_command("serve", str(folder), "--model-type", "generate")
    assert ended.returncode == 1
    assert "--model-type generate: texts is an encoder, which writes no text" in ended.stderr


def test_with_a_capacity_the_answer_depends_on_company_and_usage_counts_the_dropped(
    tmp_path: Path,
) -> None:
    GreenroomMoeForSequenceClassification(config_of("switch", **TEXT)).save_pretrained(tmp_path / "switch")
    save_byte_tokenizer(tmp_path / "switch", None)
    with serving(str(tmp_path / "switch"), "--dtype", "float32", "--switch-capacity", "1.0") as running:
        together = post(running, "/v1/classify", input=["wwwwwwww"] * 24)  # the first may run alone
    assert together["usage"]["greenroom"]["dropped_tokens"] > 0
    assert len({tuple(item["probs"]) for item in together["data"]}) > 1


def test_switch_transformers_drops_by_the_capacity_that_is_set_whatever_its_company(tmp_path: Path) -> None:
    """Each of its prompts is routed by itself, so company changes nothing."""
    config = make_config("switch_transformers")
    config.vocab_size, config.eos_token_id = 257, 256
    save_checkpoint(config, tmp_path / "switch")
    save_byte_tokenizer(tmp_path / "switch", None)
    asked = {"max_tokens": 4, "temperature": 0, "ignore_eos": True}
    with serving(str(tmp_path / "switch"), "--dtype", "float32", "--switch-capacity", "0.5") as running:
        alone = post(running, "/v1/completions", prompt="Nobody waits.", **asked)
        together = post(running, "/v1/completions", prompt=["Who?", "Nobody waits.", "Go on, then."], **asked)
    assert alone["usage"]["greenroom"]["dropped_tokens"] > 0
    assert together["choices"][1]["text"] == alone["choices"][0]["text"]
