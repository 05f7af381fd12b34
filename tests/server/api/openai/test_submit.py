"""Fields of a body reach the engine; requests that do not fit are refused."""

import asyncio

import anyio
import pytest

from server.api.core.requests.generation import Generation
from server.engine.interface import (
    FinishReason,
    GenerationRequest,
    SamplingDefaults,
    SamplingParams,
    Timeline,
    TokenEvent,
    TokenStream,
    publish,
)

ROOM = 60  # the fake model has 64 tokens, the prompt 4


def test_sampling_parameters_reach_the_engine(fake, complete):
    complete(
        max_tokens=3,
        temperature=0.5,
        top_p=0.9,
        top_k=40,
        min_p=0.1,
        seed=7,
        stop="end",
        stop_token_ids=[1, 2],
        ignore_eos=True,
        presence_penalty=1,
        frequency_penalty=-0.5,
        repetition_penalty=1.2,
        logit_bias={"7": -100, "8": 2.5},
        min_tokens=2,
        logprobs=4,
    )
    assert fake.engine.requests[0].sampling == SamplingParams(
        max_tokens=3,
        temperature=0.5,
        top_p=0.9,
        top_k=40,
        min_p=0.1,
        seed=7,
        stop=("end",),
        stop_token_ids=frozenset({1, 2}),
        ignore_eos=True,
        presence_penalty=1.0,
        frequency_penalty=-0.5,
        repetition_penalty=1.2,
        logit_bias=((7, -100.0), (8, 2.5)),
        min_tokens=2,
        logprobs=4,
    )


def test_logprobs_of_the_prompt_are_asked_for_with_an_echo(fake, complete, chat):
    complete(logprobs=3, echo=True)
    complete(echo=True)
    chat(logprobs=True, top_logprobs=5)
    chat(logprobs=True)
    asked = [(request.sampling.logprobs, request.sampling.prompt_logprobs) for request in fake.engine.requests]
    assert asked == [(3, 3), (None, None), (5, None), (0, None)]


def test_priority_and_time_limit_reach_the_engine(fake, complete):
    complete(priority=-3, timeout=1.5)
    complete()
    assert [(each.priority, each.deadline_seconds) for each in fake.engine.requests] == [(-3, 1.5), (0, None)]


@pytest.mark.parametrize("body", [{}, dict.fromkeys(["temperature", "top_p", "top_k", "stop", "seed", "n", "model"])])
def test_null_and_missing_fields_are_openais_defaults(fake, complete, body):
    assert complete(**body).status_code == 200
    assert fake.engine.requests[0].sampling == SamplingParams(max_tokens=16)


def test_missing_parameters_are_the_models_defaults(fake, complete):
    fake.service.model.defaults = SamplingDefaults(0.3, top_p=0.8, top_k=9, min_p=0.1, repetition_penalty=1.05)
    complete(top_p=0.5, top_k=-1)
    complete(repetition_penalty=1)
    mine = SamplingParams(16, temperature=0.3, top_p=0.5, top_k=0, min_p=0.1, repetition_penalty=1.05)
    assert fake.engine.requests[0].sampling == mine
    assert fake.engine.requests[1].sampling.repetition_penalty == 1


@pytest.mark.parametrize(("given", "top_k"), [(-1, 0), (0, 0), (5, 5)])
def test_every_value_that_means_all_tokens_is_zero(fake, complete, given, top_k):
    complete(top_k=given)
    assert fake.engine.requests[0].sampling.top_k == top_k


@pytest.mark.parametrize("seed", [7, -(2**63), 2**63 - 1])
def test_choices_have_seeds_of_their_own(fake, complete, seed):
    complete(seed=seed, n=16)
    seeds = [request.sampling.seed for request in fake.engine.requests]
    assert seeds[0] == seed
    assert len(set(seeds)) == 16
    assert all(-(2**63) <= choice_seed < 2**63 for choice_seed in seeds)


def test_consecutive_seeds_share_no_choice(fake, complete):
    for seed in range(8):
        complete(seed=seed, n=8)
    assert len({request.sampling.seed for request in fake.engine.requests}) == 64


def test_a_choice_has_the_same_seed_each_time(fake, complete):
    complete(seed=3, n=2)
    complete(seed=3, n=2)
    seeds = [request.sampling.seed for request in fake.engine.requests]
    assert seeds[:2] == seeds[2:]


def test_newer_name_of_the_limit_wins(fake, complete):
    complete(max_tokens=3, max_completion_tokens=2)
    assert fake.engine.requests[0].sampling.max_tokens == 2


def test_chat_goes_on_as_long_as_fits(fake, chat):
    chat()
    assert fake.engine.requests[0].sampling.max_tokens == 64 - 5


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_a_limit_of_minus_one_is_what_fits(fake, complete, name):
    complete(prompt=[1] * 8, **{name: -1})
    assert fake.engine.requests[0].sampling.max_tokens == 64 - 8


def test_a_prompt_is_cut_to_leave_a_token_if_the_limit_is_minus_one(fake, complete):
    complete(prompt=[1] * 99, max_tokens=-1, truncate_prompt_tokens=-1)
    assert fake.engine.requests[0].sampling.max_tokens == 1


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/completions", {"prompt": "a", "top_p": 0}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}], "top_p": 0.0}),
        ("/v1/responses", {"input": "a", "top_p": 0}),
        ("/v1/messages", {"messages": [{"role": "user", "content": "a"}], "max_tokens": 4, "top_p": 0}),
        ("/api/generate", {"prompt": "a", "options": {"top_p": 0}}),
    ],
)
def test_a_top_p_of_zero_is_greedy_in_every_dialect(fake, post, path, fields):
    assert post(path, {"temperature": 0.5, **fields}).status_code == 200
    sampling = fake.engine.requests[0].sampling
    assert (sampling.temperature, sampling.top_p) == (0.0, 1.0)


def test_default_limit_is_cut_to_what_fits(fake, complete):
    complete(prompt=[1] * 60)
    assert fake.engine.requests[0].sampling.max_tokens == 4


def test_limit_that_just_fits_is_taken(fake, complete):
    complete(max_tokens=ROOM)
    assert fake.engine.requests[0].sampling.max_tokens == ROOM


def test_limit_that_does_not_fit_is_refused_with_figures(fake, complete):
    response = complete(max_tokens=ROOM + 1)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["code"] == "context_length_exceeded"
    assert error["message"].startswith(
        "This model's maximum context length is 64 tokens. However, you requested 65 tokens "
        "(4 in the prompt, 61 in the completion)."
    )
    assert not fake.engine.streams


@pytest.mark.parametrize("num_tokens", [64, 100])
def test_prompt_that_leaves_no_tokens_is_refused(complete, chat, num_tokens):
    words = "a " * num_tokens
    for response, param in (
        (complete(prompt=words), "prompt"),
        (chat(messages=[{"role": "user", "content": words}]), "messages"),
    ):
        assert response.status_code == 400
        assert response.json()["error"]["code"] == "context_length_exceeded"
        assert response.json()["error"]["param"] == param


def test_one_prompt_that_does_not_fit_refuses_all(fake, complete):
    assert complete(prompt=[[1], [1] * 64]).status_code == 400
    assert not fake.engine.streams


def test_events_of_choices_come_in_the_order_of_the_engine():
    async def indices():
        request = GenerationRequest("a", (1,), SamplingParams(max_tokens=2))
        streams = [TokenStream(request, asyncio.get_running_loop(), Timeline(0.0)) for _ in range(2)]
        events = Generation("a", "m", 1, streams).events()
        order = []
        for index, reason in ((1, None), (0, None), (1, FinishReason.STOP), (0, FinishReason.LENGTH)):
            publish([(streams[index], TokenEvent("x", 1, reason))])
            order += [index for index, _ in await anext(events)]
        return [*order, [event async for event in events]]

    assert anyio.run(indices) == [1, 0, 1, 0, []]
