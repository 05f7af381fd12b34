"""The command `greenroom serve` with the bundled model."""

from __future__ import annotations

import asyncio
import re
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from expert_store import read_routing_log
from tests.e2e.processes import Server, run_command, serving

QUESTION = [{"role": "user", "content": "Write a recipe for apple pie."}]


def test_the_ready_line_names_address_and_model(server: Server) -> None:
    assert server.ready_line == f"Greenroom ready: {server.url} (model greenroom-demo)"


def test_a_chat_turn_streams_in_the_style_of_its_domain(client: openai.OpenAI) -> None:
    with client.chat.completions.create(
        model="greenroom-demo", messages=QUESTION, stream=True, temperature=0, max_tokens=60
    ) as stream:
        chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert len(chunks) > 20
    assert chunks[-1].choices[0].finish_reason in {"stop", "length"}
    assert {"boil", "butter", "flour", "sugar", "milk", "water", "salt", "eggs"} & set(re.findall(r"\w+", text.lower()))


def test_most_chat_turns_end_by_themselves(client: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "I want to order a pizza."}]
    reply = client.chat.completions.create(model="greenroom-demo", messages=messages, n=8, seed=0, max_tokens=400)
    reasons = [choice.finish_reason for choice in reply.choices]
    assert reasons.count("stop") > len(reasons) // 2
    assert not any("<|im_end|>" in (choice.message.content or "") for choice in reply.choices)


def test_streamed_and_complete_answers_are_the_same_text(client: openai.OpenAI) -> None:
    options = {"model": "greenroom-demo", "prompt": "Once upon a time", "max_tokens": 40, "seed": 7}
    whole = client.completions.create(**options)
    pieces = [chunk.choices[0].text for chunk in client.completions.create(**options, stream=True)]
    assert "".join(pieces) == whole.choices[0].text
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 40


def test_several_requests_at_once_are_all_answered(server: Server) -> None:
    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            requests = [
                client.completions.create(model="greenroom-demo", prompt=f"Section {i}.", max_tokens=24, temperature=0)
                for i in range(12)
            ]
            return [reply.choices[0].text for reply in await asyncio.gather(*requests)]

    texts = asyncio.run(ask())
    assert all(texts)


def test_disk_look_ups_keep_rising_and_resident_bytes_stay_within_the_budget(
    server: Server, client: openai.OpenAI
) -> None:
    seen = []
    for prompt in ("import os", "SCENE I. A room.", "Mix the flour"):
        client.completions.create(model="greenroom-demo", prompt=prompt, max_tokens=24)
        seen.append(server.total("expert_lookups_total", 'tier="disk"'))
        assert 0 < server.total("expert_resident_bytes") <= server.total("expert_budget_bytes")
    assert seen == sorted(set(seen))
    assert server.total("expert_resident") <= server.total("expert_slots") == 24


def test_every_routed_token_is_counted(server: Server, client: openai.OpenAI) -> None:
    """Prompt and generated tokens but the last, through two experts in each of six layers."""
    before = {layer: server.total("expert_tokens_total", f'layer="{layer}"') for layer in range(6)}
    usage = client.completions.create(
        model="greenroom-demo", prompt="To be, or not to be", max_tokens=17, extra_body={"ignore_eos": True}
    ).usage
    assert usage is not None
    rows = 2 * (usage.prompt_tokens + usage.completion_tokens - 1)
    for layer in range(6):
        assert server.total("expert_tokens_total", f'layer="{layer}"') - before[layer] == rows


def test_a_client_that_leaves_stops_its_generation(server: Server) -> None:
    body = {"prompt": "Once", "max_tokens": 2000, "stream": True, "ignore_eos": True}
    aborted = server.total("request_success_total", 'finished_reason="abort"')
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=60) as response:
        assert next(response.iter_lines()).startswith("data: ")
    while server.total("num_requests_running"):
        threading.Event().wait(0.02)
    assert server.total("request_success_total", 'finished_reason="abort"') == aborted + 1
    assert server.total("kv_cache_usage_perc") == 0


@pytest.mark.parametrize("budget", ["15%", "50%", "100%"])
def test_the_budget_does_not_change_the_text(budget: str, client: openai.OpenAI) -> None:
    """The server of this module runs at 25 %."""
    options = {"model": "greenroom-demo", "prompt": "The Mayor shall", "max_tokens": 60, "temperature": 0}
    expected = client.completions.create(**options).choices[0].text
    with serving("--host-expert-memory", budget, "--dtype", "float32") as other:
        text = httpx.post(f"{other.url}/v1/completions", json=options, timeout=60).json()["choices"][0]["text"]
    assert text == expected


def test_a_device_tier_and_another_policy_do_not_change_the_text_and_routing_is_recorded(
    client: openai.OpenAI, tmp_path: Path
) -> None:
    options = {"model": "greenroom-demo", "prompt": "The Mayor shall", "max_tokens": 60, "temperature": 0}
    expected = client.completions.create(**options).choices[0].text
    trace = tmp_path / "routing.jsonl.gz"
    flags = ("--device-expert-memory", "20%", "--host-expert-memory", "30%", "--cache-policy", "lfru")
    with serving(*flags, "--dtype", "float32", "--trace-file", str(trace)) as other:
        text = httpx.post(f"{other.url}/v1/completions", json=options, timeout=60).json()["choices"][0]["text"]
        assert other.total("expert_loaded_bytes_total", 'target="device"') > 0
        assert 0 < other.total("expert_hit_ratio") <= 1
        assert 0 < other.total("expert_optimal_hit_ratio") <= 1
        lookups = other.total("expert_lookups_total")
        assert other.interrupt()[0] == 0
    assert text == expected
    assert sum(len(lease.experts) for lease in read_routing_log(trace).leases) == lookups


def test_ctrl_c_ends_cleanly_with_a_stream_open() -> None:
    with serving("--shutdown-timeout", "1", fresh=True) as running:
        body = {"prompt": "Once", "max_tokens": 2000, "stream": True, "ignore_eos": True}
        with httpx.stream("POST", f"{running.url}/v1/completions", json=body, timeout=60) as response:
            assert next(response.iter_lines()).startswith("data: ")
            status, out, err = running.interrupt()
    assert (status, out) == (0, "")
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("serve", "./nowhere"), 1, "greenroom: there is no folder ./nowhere"),
        (("serve", "--port", "70000"), 2, "greenroom: --port '70000'"),
        (
            ("serve", "--hots", "x"),
            2,
            "greenroom serve: unrecognized arguments: --hots (did you mean --host?); see greenroom serve --help",
        ),
        (("serve", "--host-expert-memory", "lots"), 2, "is not a size; write it as 6GiB, 50% or auto"),
        (("serve", "--cache-policy", "fifo"), 2, "greenroom: --cache-policy 'fifo': Input should be 'lru'"),
        (("serve", "--device", "cuda:7"), 1, "--device cuda:7: torch sees"),
        (
            ("serve", "--trace-file", "/nowhere/t"),
            1,
            "cannot write the routing log /nowhere/t: No such file or directory",
        ),
        (("serve", "--kv-cache-memory", "1KB"), 1, "--kv-cache-memory 1KB: 2048 tokens need"),
        (("serve", "--max-model-len", "999999"), 1, "the model's context is 2048 tokens"),
        ((), 2, "greenroom: give a command: serve, pack, verify, adapter, inspect, family, "),
        (("sevre",), 2, "greenroom: there is no command sevre (did you mean serve?); see greenroom --help"),
    ],
)
def test_wrong_usage_is_one_line_that_says_what_to_do(arguments: tuple[str, ...], status: int, message: str) -> None:
    result = run_command(*arguments, environment={"GREENROOM_PORT": "0"})  # 8000 may be in use here
    last = result.stderr.splitlines()[-1]
    assert (result.returncode, result.stdout) == (status, "")
    assert message in last
    assert "Traceback" not in result.stderr


def test_a_port_in_use_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = run_command("serve", "--port", str(port))
    assert result.returncode == 1
    assert result.stderr == (
        f"greenroom: cannot listen on 127.0.0.1:{port}: Address already in use; stop the process that uses it "
        f"(`ss -ltnp 'sport = :{port}'`), or choose another --port (0: any free)\n"
    )


def test_a_budget_too_small_is_raised_with_a_warning() -> None:
    with serving("--host-expert-memory", "1KB") as running:
        assert running.total("expert_slots") == 2
        status, _, err = running.interrupt()
    assert status == 0
    assert "--host-expert-memory 1KB is 1000 B; raised to" in err


def test_deterministic_text_is_the_same_alone_and_in_a_batch() -> None:
    with serving("--deterministic", "--host-expert-memory", "25%") as running:
        client = running.client()

        def ask(prompt: str, seed: int) -> str:
            options = {"model": "greenroom-demo", "prompt": prompt, "seed": seed, "max_tokens": 24, "temperature": 1.2}
            return client.completions.create(**options).choices[0].text

        requests = [(f"Chapter {number}. The " + "story " * number, number) for number in range(8)]
        alone = [ask(*request) for request in requests]
        with ThreadPoolExecutor(len(requests)) as together:
            assert list(together.map(lambda request: ask(*request), requests)) == alone
