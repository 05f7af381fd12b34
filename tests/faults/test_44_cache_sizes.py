"""Memory for the experts of one token, for one more, for half and for all: the same output, bit by bit."""

from __future__ import annotations

import json

import pytest

from expert_store import ExpertKey, least_bytes
from tests.faults.bundled import serving_bundled
from tests.server.live.requests import ask_together, post

pytestmark = pytest.mark.slow

NUM_LAYERS, NUM_EXPERTS, TOP_K = 6, 16, 2  # of the bundled model
NUM_ALL = NUM_LAYERS * NUM_EXPERTS
SLOTS = (TOP_K, TOP_K + 1, NUM_LAYERS * TOP_K, NUM_ALL // 2, NUM_ALL)


def test_the_output_does_not_depend_on_the_size_of_the_cache() -> None:
    """With ``echo`` and ``logprobs``, each prompt is computed anew."""
    requests = [
        post("/v1/completions", prompt=prompt, max_tokens=12, temperature=0, echo=True, logprobs=3)
        for prompt in ("Once upon a time there was a dog", "She", "The sun was warm and the garden was green")
    ]
    found = {}
    with serving_bundled(deterministic=True) as (server, loaded):
        store = loaded.store
        for slots in SLOTS:
            store.resize(host_bytes=least_bytes(store.catalog, slots))
            store.evict(ExpertKey(layer, expert) for layer in store.catalog.layers for expert in range(NUM_EXPERTS))
            assert store.tiers()["host"].num_slots == slots
            answers = ask_together(server.port, requests)
            choices = [json.loads(answer.partition(b"\r\n\r\n")[2])["choices"] for answer in answers]
            found[slots] = json.dumps(choices)
    assert {slots for slots in SLOTS if found[slots] != found[NUM_ALL]} == set()
