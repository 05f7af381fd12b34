"""``/score`` and ``/rerank`` over a socket: the real engine with a fake model; bodies are vLLM's."""

from __future__ import annotations

import re
import threading
from typing import Any

import httpx
import numpy as np
import pytest

from server.engine.text.codec import Codec
from tests.server.engine.fakes import Rig
from tests.server.live.conftest import FakeServer, serving_rig
from tests.server.live.requests import post as request
from tests.server.live.test_embeddings import mean

QUERY, DOCUMENTS = "rain", ["sun and wind", "rain", "snow"]


def post(live: FakeServer, path: str, **body: Any) -> httpx.Response:
    return httpx.post(f"http://127.0.0.1:{live.port}{path}", json=body, timeout=30)


def scores(response: httpx.Response) -> list[float]:
    assert response.status_code == 200, response.text
    return [each["score"] for each in response.json()["data"]]


def cosine(first: str, second: str) -> float:
    return float(np.dot(mean(first.encode()), mean(second.encode())))


@pytest.mark.parametrize("path", ["/score", "/v1/score"])
def test_a_query_is_scored_against_each_document(path: str, live: FakeServer) -> None:
    answer = post(live, path, model="fake", text_1=QUERY, text_2=DOCUMENTS)
    assert scores(answer) == pytest.approx([cosine(QUERY, text) for text in DOCUMENTS])
    body = answer.json()
    assert re.fullmatch("score-[0-9a-f]{32}", body["id"])
    assert (body["object"], body["model"], type(body["created"])) == ("list", "fake", int)
    assert [(each["index"], each["object"]) for each in body["data"]] == [(0, "score"), (1, "score"), (2, "score")]
    num_tokens = len(QUERY) + sum(map(len, DOCUMENTS))
    assert (body["usage"]["prompt_tokens"], body["usage"]["total_tokens"]) == (num_tokens, num_tokens)
    assert body["usage"]["greenroom"]["expert_requests"] == num_tokens


def test_as_many_queries_as_documents_are_scored_in_pairs(live: FakeServer) -> None:
    answer = post(live, "/score", text_1=["a", "bc"], text_2=["d", "ef"])
    assert scores(answer) == pytest.approx([cosine("a", "d"), cosine("bc", "ef")])


@pytest.mark.parametrize("names", [("queries", "documents"), ("queries", "items"), ("data_1", "data_2")])
def test_each_pair_of_names_is_taken(names: tuple[str, str], live: FakeServer) -> None:
    first, second = names
    assert scores(post(live, "/score", **{first: "a", second: "bc"})) == pytest.approx([cosine("a", "bc")])


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
def test_documents_are_ranked(path: str, live: FakeServer) -> None:
    body = post(live, path, model="fake", query=QUERY, documents=DOCUMENTS).json()
    similar = {text: cosine(QUERY, text) for text in DOCUMENTS}
    best = sorted(DOCUMENTS, key=lambda text: similar[text], reverse=True)
    assert best[0] == QUERY
    assert [each["document"] for each in body["results"]] == [{"text": text, "multi_modal": None} for text in best]
    assert [each["index"] for each in body["results"]] == [DOCUMENTS.index(text) for text in best]
    relevance = [each["relevance_score"] for each in body["results"]]
    assert relevance == pytest.approx([similar[text] for text in best])
    assert (set(body), body["model"]) == ({"id", "model", "usage", "results"}, "fake")


def test_only_the_best_documents_are_returned(live: FakeServer) -> None:
    (best,) = post(live, "/rerank", query=QUERY, documents=DOCUMENTS, top_n=1).json()["results"]
    assert best["index"] == 1


@pytest.mark.parametrize(
    ("limits", "query", "document"),
    [
        ({"truncate_prompt_tokens": 3}, "abc", "uvw"),
        ({"truncate_prompt_tokens": 3, "truncation_side": "left"}, "cde", "xyz"),
        ({"max_tokens_per_query": 2}, "ab", "uvwxyz"),
        ({"max_tokens_per_doc": 4, "truncate_prompt_tokens": 5}, "abcde", "uvwx"),
    ],
)
def test_texts_are_cut(limits: dict[str, Any], query: str, document: str, live: FakeServer) -> None:
    answer = post(live, "/score", text_1="abcde", text_2="uvwxyz", **limits)
    assert scores(answer) == pytest.approx([cosine(query, document)])


@pytest.mark.slow
def test_a_text_of_any_length_may_be_cut_to_the_context(live: FakeServer) -> None:
    assert post(live, "/score", text_1="a", text_2="b" * 1_000_000).status_code == 400
    cut = scores(post(live, "/score", text_1="a", text_2="b" * 1_000_000, truncate_prompt_tokens=-1))
    assert cut == pytest.approx([cosine("a", "b" * live.engine.max_model_len)])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "body", "param", "sentence"),
    [
        ("/score", {}, "text_1", "The body must have 'text_1' and 'text_2', or 'queries' and 'documents'"),
        ("/score", {"text_1": "a"}, "text_1", "The body must have"),
        ("/score", {"text_1": "a", "text_2": "b", "items": "c"}, "items", "The body must have"),
        ("/score", {"text_1": ["a", "b"], "text_2": ["c"]}, "text_1", "as many as 'text_2', which holds 1; it holds 2"),
        ("/score", {"text_1": "a", "text_2": []}, "text_2", "'text_2' must be a string or a list of strings"),
        ("/score", {"text_1": "", "text_2": "b"}, "text_1", "none of them empty"),
        ("/score", {"text_1": [1], "text_2": "b"}, "text_1", "must hold valid Unicode strings only"),
        ("/score", {"text_1": "a", "text_2": ["b"] * 2049}, "text_2", "no more than 2048 texts, but holds 2049"),
        ("/score", {"text_1": "a", "text_2": "b", "truncate_prompt_tokens": 0}, "truncate_prompt_tokens", "above 0"),
        ("/score", {"text_1": "a", "text_2": "b" * 9000}, "text_2", "maximum context length is 8192 tokens"),
        ("/rerank", {"documents": ["a"]}, "query", "'query' is required."),
        ("/rerank", {"query": "a"}, "documents", "'documents' is required."),
        ("/rerank", {"query": "a", "documents": [{"text": "b"}]}, "documents", "must hold valid Unicode strings only"),
        ("/rerank", {"query": "a", "documents": ["b"], "top_n": -1}, "top_n", "'top_n': input should be greater"),
    ],
)
def test_bad_input_is_named(path: str, body: dict[str, Any], param: str, sentence: str, live: FakeServer) -> None:
    answer = post(live, path, **body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert sentence in answer.json()["error"]["message"]


def test_a_model_without_hidden_states_says_so(live: FakeServer) -> None:
    live.rig.model.hidden_size = 0
    answer = post(live, "/score", text_1="a", text_2="b")
    assert answer.status_code == 400
    assert "gives no embeddings" in answer.json()["error"]["message"]


def test_a_client_that_leaves_cancels_its_texts(codec: Codec) -> None:
    with serving_rig(Rig(num_blocks=64, max_running=2, max_batched_tokens=8), codec) as live:
        begun, may_go = threading.Event(), threading.Event()
        live.rig.model.before_step = lambda: (begun.set(), may_go.wait(30))[0]
        with live.connect() as connection:
            connection.sendall(request("/rerank", query="a", documents=[str(number) for number in range(100)]))
            assert begun.wait(30)
        live.wait_until_left()
        may_go.set()
        live.wait_until_idle()
        assert live.engine.num_submitted <= 32
