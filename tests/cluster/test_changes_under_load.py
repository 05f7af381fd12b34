"""Replicas that are added, replaced and stopped while clients ask, with the bundled model."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from server.model.checkpoint.locate import BUNDLED_NAME as MODEL
from tests.cluster.conftest import Cluster
from tests.server.cluster.ray_cluster import INGRESS, wait_until

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore"),  # of Ray and what it imports
]

STORY = {"model": MODEL, "prompt": "Once upon a time", "temperature": 0, "ignore_eos": True}
PINNED = [[0, 1], [2, 3]]


def test_of_sixty_four_streams_a_fifth_leaves_and_the_others_are_complete(cluster: Cluster) -> None:
    cluster.deploy(replicas=2)

    def read(number: int) -> int:
        asked = {**STORY, "prompt": f"Story {number}:", "max_tokens": 40, "stream": True}
        with cluster.http() as http, http.stream("POST", "/v1/completions", json=asked) as reply:
            events = 0
            for line in reply.iter_lines():
                events += line.startswith("data: {")
                if number % 5 == 0 and events == 3:
                    return 0
        return events

    with ThreadPoolExecutor(64) as pool:
        counts = list(pool.map(read, range(64)))
    assert all(count >= 20 for number, count in enumerate(counts) if number % 5)
    wait_until(lambda: cluster.total("num_requests_running") == 0, 10)


def test_the_client_whose_request_opened_the_shared_stream_leaves_and_other_texts_stay_whole(cluster: Cluster) -> None:
    cluster.deploy(replicas=1, settings={"deterministic": True})
    asked = {**STORY, "max_tokens": 1000, "stream": True}
    prompts = ["A king", "Two pies", "The third part"]
    has_begun, has_left = [threading.Event() for _ in prompts], threading.Event()

    def read(number: int) -> str:
        text, body = "", {**asked, "prompt": prompts[number]}
        if number:
            has_begun[number - 1].wait(60)
        with cluster.http() as http, http.stream("POST", "/v1/completions", json=body) as reply:
            for line in reply.iter_lines():
                if line.startswith("data: {"):
                    text += json.loads(line.removeprefix("data: "))["choices"][0]["text"]
                    has_begun[number].set()
                if number == 1 and has_begun[2].is_set():  # it was the second one, so its request opened the stream
                    has_left.set()
                    break
        return text

    with cluster.http() as http:
        bodies = [{**asked, "prompt": prompt, "stream": False} for prompt in prompts]
        replies = [http.post("/v1/completions", json=body).json() for body in bodies]
    expected = [reply["choices"][0]["text"] for reply in replies]
    with ThreadPoolExecutor(3) as pool:
        texts = list(pool.map(read, range(3)))
    assert has_left.is_set()
    assert len(texts[1]) < len(expected[1])
    assert (texts[0], texts[2]) == (expected[0], expected[2])


def update(cluster: Cluster, **options: Any) -> Counter[int]:
    """Update the application while four clients ask; return the statuses of their requests."""
    before, statuses, ends = cluster.replicas(), Counter[int](), threading.Event()

    def ask() -> None:
        with cluster.http() as http:
            while not ends.is_set():
                statuses[http.post("/v1/completions", json={**STORY, "max_tokens": 24}).status_code] += 1

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask) for _ in range(4)]
        try:
            cluster.deploy(**options, settings={"max_running_requests": 32})
            wait_until(lambda: not before & cluster.replicas(), 60)
        finally:
            ends.set()
        for each in asking:
            each.result()
    return statuses


def test_a_rolling_update_loses_no_request(cluster: Cluster) -> None:
    cluster.deploy(replicas=2)
    assert set(update(cluster, replicas=2)) == {200}


def test_the_only_replica_hands_over_to_a_new_one_with_what_was_loaded(cluster: Cluster) -> None:
    cluster.deploy(replicas=1, surge_percent=100)
    with cluster.http() as http:
        http.post("/v1/load_lora_adapter", json={"lora_name": "late", "lora_path": "recipes"}).raise_for_status()
        assert set(update(cluster, replicas=1, surge_percent=100)) == {200}
        assert http.get("/v1/models/late").is_success


@contextmanager
def queue(cluster: Cluster, length: int) -> Iterator[None]:
    """Keep requests waiting."""
    is_over = threading.Event()

    def ask() -> None:
        with cluster.http() as http:
            while not is_over.is_set():
                http.post("/v1/completions", json={**STORY, "max_tokens": 200}).raise_for_status()

    with ThreadPoolExecutor(length) as pool:
        asking = [pool.submit(ask) for _ in range(length)]
        try:
            yield
        finally:
            is_over.set()
        for each in asking:
            each.result()


def test_a_queue_makes_a_third_replica_that_has_what_others_hold_and_idle_time_stops_one(cluster: Cluster) -> None:
    scaling = {"replicas": 2, "max_replicas": 3, "scale_up_seconds": 1, "scale_down_seconds": 1}
    cluster.deploy(**scaling, settings={"max_running_requests": 2})
    with cluster.http() as http:
        http.post("/v1/experts/pin", json={"experts": PINNED}).raise_for_status()
        http.post("/v1/load_lora_adapter", json={"lora_name": "cakes", "lora_path": "recipes"}).raise_for_status()
    with queue(cluster, 20):
        wait_until(lambda: len(cluster.replicas()) == 3, 60)
        pinned = cluster.metric("expert_pinned")
        with cluster.http() as http:
            assert http.get("/v1/models/cakes").is_success
    assert [number for labels, number in pinned.items() if 'tier="host"' in labels] == [len(PINNED)] * 3
    wait_until(lambda: len(cluster.replicas()) == 2, 60)


def test_replicas_that_died_are_replaced(cluster: Cluster) -> None:
    cluster.deploy(replicas=2)
    before = cluster.replicas()
    for process in cluster.processes():
        process.kill()
    wait_until(lambda: len(cluster.replicas() - before) == 2, 60)
    with cluster.http() as http:
        reply = http.post("/v1/completions", json={**STORY, "max_tokens": 4}).json()
    assert reply["usage"]["completion_tokens"] == 4


def test_no_count_falls_when_a_replica_dies_and_when_all_are_updated(cluster: Cluster) -> None:
    cluster.deploy(replicas=2)

    def ask() -> None:
        with cluster.http() as http:
            for number in range(4):
                asked = {**STORY, "prompt": f"Story {number}:", "max_tokens": 8}
                http.post("/v1/completions", json=asked).raise_for_status()

    before = cluster.merged("generation_tokens_total")
    ask()
    assert cluster.merged("generation_tokens_total") == before + 32
    cluster.processes()[0].kill()
    wait_until(lambda: len(cluster.replicas()) == 1, 60)
    assert cluster.merged("generation_tokens_total") == before + 32
    ask()  # what is counted here is read by nobody before the update
    replicas = cluster.replicas()
    cluster.deploy(replicas=1, settings={"max_running_requests": 16})
    wait_until(lambda: not replicas & cluster.replicas(), 60)
    assert cluster.merged("generation_tokens_total") == before + 64


def test_the_requests_of_an_ingress_that_died_end_with_an_error_that_says_to_retry(cluster: Cluster) -> None:
    cluster.deploy(replicas=1, settings={"max_model_len": 2048})
    asked = {**STORY, "max_tokens": 2000, "stream": True}
    with cluster.http() as http, http.stream("POST", "/v1/completions", json=asked) as reply:
        lines = reply.iter_lines()
        next(lines)
        for process in cluster.processes(INGRESS):
            process.kill()
        *_, error, done = [line for line in lines if line]
    assert "send the request again" in error
    assert done == "data: [DONE]"

    def answers() -> bool:
        try:
            return httpx.get(f"{cluster.url}/ready", timeout=5).is_success
        except httpx.HTTPError:
            return False

    wait_until(answers, 60)
    wait_until(lambda: cluster.total("num_requests_running") == 0, 60)


def test_of_two_ingresses_one_dies_and_the_streams_of_the_other_are_complete(cluster: Cluster) -> None:
    cluster.deploy(replicas=2, ingresses=2)
    wait_until(lambda: len(cluster.processes(INGRESS)) == 2, 60)
    reading, is_killed = threading.Barrier(17), threading.Event()

    def read(number: int) -> int:
        asked = {**STORY, "prompt": f"Story {number}:", "max_tokens": 1000, "stream": True}
        with cluster.http() as http, http.stream("POST", "/v1/completions", json=asked) as reply:
            lines, events = reply.iter_lines(), 0
            next(lines)
            reading.wait(60)
            is_killed.wait(60)
            for line in lines:
                events += line.startswith("data: {")
                if line.startswith('data: {"error"'):
                    return 0
        return events

    with ThreadPoolExecutor(16) as pool:
        streams = [pool.submit(read, number) for number in range(16)]
        reading.wait(60)
        cluster.processes(INGRESS)[0].kill()
        is_killed.set()
        counts = [each.result() for each in streams]
    complete = sum(count >= 500 for count in counts)
    assert 0 < complete < 16
    with cluster.http() as http:
        wait_until(lambda: http.post("/v1/completions", json={**STORY, "max_tokens": 4}).is_success, 10)
