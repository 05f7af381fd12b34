"""Experts are evicted between the look-up and their use; a lease ends twice."""

from __future__ import annotations

import threading
from contextlib import closing
from pathlib import Path

import pytest

from expert_store import ExpertKey, ExpertStore, least_bytes
from tests.expert_store.lease_rows import one_row_each
from tests.expert_store.records import LAYOUT, make_records
from tests.faults.bundled import serving_bundled, text_of
from tests.server.live.requests import ask_together, post


@pytest.mark.slow
def test_texts_do_not_change_while_everything_is_evicted_and_resized_all_the_time() -> None:
    prompts = ["Once upon a time", "The little dog", "She said", "In the garden"]
    requests = [post("/v1/completions", prompt=prompt, max_tokens=24, temperature=0) for prompt in prompts]
    is_over = threading.Event()
    with serving_bundled(deterministic=True) as (server, loaded):
        store = loaded.store
        wanted = [text_of(answer) for answer in ask_together(server.port, requests)]
        keys = [ExpertKey(layer, expert) for layer in store.catalog.layers for expert in range(16)]
        sizes = [least_bytes(store.catalog, slots) for slots in (12, 48, 96)]

        def disturb() -> None:
            number = 0
            while not is_over.wait(0.001):
                store.evict(keys)
                store.resize(host_bytes=sizes[number % len(sizes)])
                number += 1

        thread = threading.Thread(target=disturb)
        thread.start()
        try:
            found = [text_of(answer) for answer in ask_together(server.port, requests)]
        finally:
            is_over.set()
            thread.join()
        store.check_integrity()
    assert found == wanted


def test_a_lease_that_ends_twice_releases_once(tmp_path: Path) -> None:
    with closing(ExpertStore(make_records(tmp_path), 4 * LAYOUT.slot_bytes)) as store:
        first, second = (store.lease(one_row_each(0, [1])) for _ in range(2))
        list(first.__enter__())
        list(second.__enter__())
        first.__exit__(None, None, None)
        first.__exit__(None, None, None)
        assert store.try_evict([ExpertKey(0, 1)]) == {ExpertKey(0, 1): "in_use"}
        second.__exit__(None, None, None)
        assert store.evict([ExpertKey(0, 1)]) == 1
