"""Very long replies."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.api.core.json_text.encoding import MEMBERS_PER_CALL, encode_json, encode_long
from server.api.openai.chunk_encoder import PROMPT_SLICE
from server.engine.interface import RequestMemory
from server.engine.text.codec import Codec
from tests.server.engine.fakes import Rig
from tests.server.live.conftest import FakeServer, serving_rig
from tests.server.live.requests import ask, complete, error_of, headers_of, post, status_of

PROMPT = b"abcdefgh" * 100


def members(children: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    numbers = st.lists(st.integers(), min_size=MEMBERS_PER_CALL - 1, max_size=2 * MEMBERS_PER_CALL + 1)
    return st.dictionaries(st.text(max_size=3), children, max_size=3) | st.lists(children, max_size=3) | numbers


@pytest.mark.slow
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), members, max_leaves=8))
def test_encoding_in_several_calls_changes_nothing(value: object) -> None:
    assert encode_long(value) == encode_json(value)


def test_no_call_encodes_a_long_list_however_deep_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = list[int]()

    def encode(value: object) -> str:
        encoded = encode_json(value)
        lengths.append(len(encoded))
        return encoded

    monkeypatch.setattr("server.api.core.json_text.encoding.encode_json", encode)
    logprobs = [{"token": "a", "top_logprobs": [{"token": "b"}]}] * 10 * MEMBERS_PER_CALL
    encoded = encode_long({"output": [{"content": [{"text": "a", "logprobs": logprobs}]}]})
    assert max(lengths) <= len(encoded) / 10


def test_logprobs_of_a_long_prompt_are_returned(live: FakeServer) -> None:
    answer = ask(live.port, complete(PROMPT, echo=True, logprobs=20, max_tokens=1))
    told = json.loads(answer.partition(b"\r\n\r\n")[2])["choices"][0]["logprobs"]
    assert "".join(told["tokens"][: len(PROMPT)]) == PROMPT.decode()
    assert len(told["top_logprobs"]) == len(PROMPT) + 1


def test_a_stream_echoes_a_long_prompt_in_chunks_that_add_up_to_the_complete_reply(live: FakeServer) -> None:
    asked = {"echo": True, "logprobs": 2, "max_tokens": 2, "return_token_ids": True}
    complete_reply = ask(live.port, complete(PROMPT, **asked))
    (choice,) = json.loads(complete_reply.partition(b"\r\n\r\n")[2])["choices"]
    stream = ask(live.port, complete(PROMPT, **asked, stream=True))
    lines = [line for line in stream.split(b"\n") if line.startswith(b"data: {")]
    chunks = [each for line in lines for each in json.loads(line[len(b"data: ") :])["choices"]]
    assert len(chunks) > len(PROMPT) / PROMPT_SLICE
    assert "".join(chunk["text"] for chunk in chunks) == choice["text"]
    for name, values in choice["logprobs"].items():
        assert [each for chunk in chunks if chunk["logprobs"] for each in chunk["logprobs"][name]] == values


@pytest.mark.parametrize("stream", [False, True])
def test_more_logprobs_of_prompts_than_memory_can_hold_are_refused_before_they_are_computed(
    codec: Codec, stream: bool
) -> None:
    memory = RequestMemory(lambda: 20 << 20)
    with serving_rig(Rig(num_blocks=2048), codec, memory=memory) as live:
        answer = ask(live.port, complete(PROMPT, echo=True, logprobs=20, max_tokens=1, n=128, stream=stream))
        error = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
        assert (status_of(answer), error["param"]) == (400, "logprobs")
        assert "MiB of memory, but all requests together may hold 20.0 MiB: ask for less" in error["message"]
        assert not live.rig.model.steps
        assert memory.held_bytes == 0


def test_a_request_waits_for_the_memory_that_others_hold(live: FakeServer) -> None:
    """The others release theirs however they end."""
    memory, may_run = live.model.memory, threading.Event()
    live.rig.model.before_step = lambda: may_run.wait() and None
    asked = {"echo": True, "logprobs": 5, "max_tokens": 5}
    with live.connect() as first, live.connect() as second, ThreadPoolExecutor(1) as pool:
        first.sendall(complete(PROMPT, **asked, stream=True))
        assert first.recv(1 << 16)  # it is begun
        other = memory.reserve()
        assert other.use_now(memory.limit_bytes - memory.held_bytes - 1000)
        second.sendall(complete(PROMPT, **asked))
        waiting = pool.submit(ask, live.port, complete(b"a", **asked))
        may_run.set()
        second.close()
        while first.recv(1 << 16):
            pass
        assert status_of(waiting.result()) == 200
    other.release()
    live.wait_until_left()
    assert memory.held_bytes == 0


def test_a_request_is_refused_if_others_keep_the_memory(codec: Codec) -> None:
    memory = RequestMemory(wait_seconds=0.0)
    with serving_rig(Rig(), codec, memory=memory) as live, memory.reserve() as others:
        others.use_now(memory.limit_bytes - 10_000)
        refused = ask(live.port, complete(b"a", max_tokens=5))
        assert (status_of(refused), headers_of(refused)["retry-after"]) == (503, "1")
        assert "others hold" not in error_of(refused)["message"]
        assert "other requests hold 256.0 MiB of the 256.0 MiB for requests" in error_of(refused)["message"]


@pytest.mark.slow
def test_a_reply_that_outgrows_its_reservation_and_the_memory_ends_with_an_error(codec: Codec) -> None:
    """Nobody knows before how long a reply without ``max_tokens`` gets."""
    memory = RequestMemory(lambda: 100_000, wait_seconds=0.0)
    with serving_rig(Rig(num_blocks=2048), codec, memory=memory) as live:
        body = {"messages": [{"role": "user", "content": "abc"}], "return_experts": True, "ignore_eos": True}
        answer = ask(live.port, post("/v1/chat/completions", **body))
        assert status_of(answer) == 503
        assert "of memory, and other requests hold 97" in error_of(answer)["message"]
        live.wait_until_left()
        assert memory.held_bytes == 0
