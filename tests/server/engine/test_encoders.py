"""The engine over a model that reads whole prompts: which steps they go into, and what it refuses."""

from __future__ import annotations

import asyncio
import sys
import threading

import pytest

from server.engine.interface import GenerationRequest, Pooling, RequestRefusedError, SamplingParams, TokenStream
from tests.server.engine.fakes import Rig, collect, run


def encoder(max_batched_tokens: int = 10) -> Rig:
    rig = Rig(max_batched_tokens=max_batched_tokens)
    rig.model.is_encoder = True
    return rig


def submit(rig: Rig, num_tokens: int, pooling: Pooling | None = "mean") -> TokenStream:
    return rig.engine.submit(GenerationRequest("test", (65,) * num_tokens, SamplingParams(0), pooling=pooling))


def test_no_prompt_is_cut_and_one_that_does_not_fit_a_step_waits_for_the_next() -> None:
    rig = encoder()

    async def scenario() -> None:
        are_there = threading.Event()
        rig.model.before_step = lambda: None if are_there.wait(30) else sys.exit("the requests did not arrive")
        streams = [submit(rig, count) for count in (10, 6, 5, 4, 1)]  # the first fills a step
        are_there.set()
        await asyncio.gather(*map(collect, streams))

    run(rig, scenario)
    whole = [count for step in rig.model.steps for count in step]
    assert whole == [10, 6, 5, 4, 1]
    assert rig.model.steps[1:] == [[6], [5, 4, 1]]


@pytest.mark.parametrize(
    ("num_tokens", "pooling", "message"),
    [
        (11, "mean", "11 tokens, which an encoder reads in one step of --max-batched-tokens 10; shorten it"),
        (3, None, "an encoder, which writes no text"),
        (3, "classify", "has no labels"),
    ],
)
def test_what_it_can_not_do_is_refused(num_tokens: int, pooling: Pooling | None, message: str) -> None:
    rig = encoder()

    async def scenario() -> None:
        with pytest.raises(RequestRefusedError, match=message):
            submit(rig, num_tokens, pooling)

    run(rig, scenario)
