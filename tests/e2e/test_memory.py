"""A server stays within its memory budget under any load."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from benchmarks.comparison.control_group import ControlGroup, ControlGroupError
from tests.e2e.processes import run_command, serving

MIB = 1 << 20
LIMIT = 600 * MIB
NUM_STREAMS = 32


@pytest.fixture
def group() -> Iterator[ControlGroup]:
    try:
        group = ControlGroup(LIMIT)
    except ControlGroupError as error:
        pytest.skip(str(error))
    yield group
    group.close()


def test_a_burst_in_a_small_control_group_is_answered_and_nothing_is_killed(group: ControlGroup) -> None:
    with serving(group=group) as server, httpx.Client(base_url=server.url, timeout=300) as http:

        def ask(number: int) -> int:
            prompt = [(number * 7 + position) % 500 + 3 for position in range(200 + 40 * number)]
            body = {"prompt": prompt, "max_tokens": 16, "ignore_eos": True, "n": 1 + number % 3}
            return http.post("/v1/completions", json=body).status_code

        pids = group.pids()
        with ThreadPoolExecutor(NUM_STREAMS) as threads:
            assert set(threads.map(ask, range(NUM_STREAMS))) == {200}
        assert set(pids) <= set(group.pids())
        peak = group.peak_bytes()
        assert peak is None or peak <= LIMIT


def test_too_little_memory_is_refused_with_the_size_that_is_enough() -> None:
    refused = run_command("serve", "--port", "0", "--memory", "100MiB")
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
    advised = re.search(r"set --memory to (\d+MiB) or more", refused.stderr)
    assert advised is not None, refused.stderr
    with serving("--memory", advised.group(1)) as server:
        answer = httpx.post(f"{server.url}/v1/completions", json={"prompt": "Once", "max_tokens": 4}, timeout=60)
    assert answer.status_code == 200
