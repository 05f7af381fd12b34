"""Structured output of the engine, with other parameters and other sequences in the batch."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
import torch

from server.api.core.grammars.json_schema import schema_text
from server.engine.interface import (
    FinishReason,
    GenerationFailedError,
    Grammar,
    GrammarSpec,
    RequestRefusedError,
    SamplingParams,
    TokenEvent,
)
from server.engine.sampling.grammar import MAX_DIGITS, GrammarCompiler
from server.engine.sampling.sampler import sample
from server.engine.sampling.sampling_state import SamplingState
from server.model.step import SequenceChunk, StepOutput
from tests.server.engine.fakes import VOCABULARY, Rig, collect, continuation, next_token, run

END = 0
SCHEMA = {
    "type": "object",
    "properties": {"room": {"enum": ["green", "red"]}, "is_open": {"type": "boolean"}, "seats": {"const": 12}},
    "required": ["room", "is_open", "seats"],
    "additionalProperties": False,
}
COMPILER = GrammarCompiler([bytes([byte]) for byte in range(VOCABULARY)], frozenset(), frozenset({END}))


def follow(schema: dict[str, Any]) -> Grammar:
    return COMPILER.compile(GrammarSpec("json_schema", schema_text(schema)))


@pytest.fixture(scope="module")
def grammar() -> Grammar:
    return follow(SCHEMA)


def make_rig(**options: Any) -> Rig:
    return Rig(eos_token_ids=frozenset({END}), **options)


def events(prompt: bytes, max_tokens: int, **sampling: Any) -> list[TokenEvent]:
    rig = make_rig()

    async def scenario() -> list[TokenEvent]:
        return [event async for event in rig.submit(prompt, max_tokens, **sampling)]

    found: list[TokenEvent] = run(rig, scenario)
    return found


def written(prompt: bytes, max_tokens: int, **sampling: Any) -> tuple[str, FinishReason | None]:
    found = events(prompt, max_tokens, **sampling)
    return "".join(event.text for event in found), found[-1].finish_reason


def test_a_completion_is_json_of_the_schema_and_ends_with_it(grammar: Grammar) -> None:
    text, reason = written(b"a", 200, grammar=grammar)
    found = json.loads(text)
    assert found["room"] in ("green", "red")
    assert found["seats"] == 12
    assert reason is FinishReason.STOP


def test_max_tokens_cuts_it(grammar: Grammar) -> None:
    text, reason = written(b"a", 5, grammar=grammar)
    assert len(text) == 5
    assert reason is FinishReason.LENGTH


def test_a_seed_repeats_it(grammar: Grammar) -> None:
    logits = torch.randn((3, VOCABULARY), generator=torch.Generator().manual_seed(0))
    texts = []
    for _ in range(2):
        states = [SamplingState(SamplingParams(99), 7, [1], 1, grammar) for _ in range(3)]
        for _ in range(20):
            for state, token in zip(states, sample(logits.clone(), states), strict=True):
                assert state.matcher is not None
                assert token is not None
                state.token_ids.append(token)
                state.matcher.accept(token)
        texts.append([bytes(state.token_ids) for state in states])
    assert texts[0] == texts[1]


@pytest.mark.slow
def test_other_sequences_and_preemption_change_nothing(grammar: Grammar) -> None:
    prompts = [b"stream %d" % number for number in range(6)]
    alone = [written(prompt, 60, grammar=grammar)[0] for prompt in prompts]
    rig = make_rig(num_blocks=40)

    async def scenario() -> list[str]:
        streams = [rig.submit(prompt, 60, grammar=grammar) for prompt in prompts]
        others = [rig.submit(prompt, 60) for prompt in prompts[:2]]
        return await asyncio.gather(*map(collect, [*streams, *others]))

    assert run(rig, scenario) == [*alone, *(continuation(prompt, 60) for prompt in prompts[:2])]
    assert rig.engine.statistics.preemptions > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "sampling",
    [
        {"logit_bias": tuple((byte, 100.0) for byte in b"xyz}]\n ")},
        {"logit_bias": tuple((byte, -100.0) for byte in b'{"}:,')},
        {"presence_penalty": -2.0, "frequency_penalty": -2.0, "repetition_penalty": 0.1},
        {"min_tokens": 190},
        {"ignore_eos": True},
        {"stop": ("nowhere",)},
        {"stop_token_ids": frozenset(b"xyz")},
        {"top_k": 5, "top_p": 0.5, "min_p": 0.1, "logprobs": 3},
    ],
    ids=lambda sampling: next(iter(sampling)),
)
def test_no_other_parameter_breaks_it(grammar: Grammar, sampling: dict[str, Any]) -> None:
    text, reason = written(b"a", 200, grammar=grammar, **sampling)
    assert json.loads(text)["seats"] == 12
    assert reason is FinishReason.STOP


def test_end_tokens_wait_for_min_tokens_unless_nothing_else_is_allowed() -> None:
    sevens = follow({"type": "integer"})
    likes_ends = {"logit_bias": ((END, 50.0), (ord("7"), 20.0)), "grammar": sevens}
    assert written(b"a", 60, **likes_ends) == ("7", FinishReason.STOP)
    assert written(b"a", 60, min_tokens=5, **likes_ends) == ("77777", FinishReason.STOP)
    assert written(b"a", 60, min_tokens=50, **likes_ends) == ("7" * MAX_DIGITS, FinishReason.STOP)


def test_an_end_token_ends_it_despite_ignore_eos() -> None:
    biased = {"logit_bias": ((END, 50.0), (ord("7"), 20.0)), "ignore_eos": True}
    assert written(b"a", 60, grammar=follow({"type": "integer"}), **biased) == ("7", FinishReason.STOP)


def test_a_stop_string_cuts_it(grammar: Grammar) -> None:
    text, reason = written(b"a", 200, grammar=grammar, stop=("is_",))
    assert text.endswith('"')
    assert "room" in text
    assert reason is FinishReason.STOP


def test_logprobs_are_the_models_own(grammar: Grammar) -> None:
    prompt = b"a"
    found = [each for event in events(prompt, 200, grammar=grammar, logprobs=1) for each in event.logprobs]
    written = bytearray(prompt)
    scale = float(torch.tensor([1.0] + [0.0] * (VOCABULARY - 1)).logsumexp(0))
    for each in found:
        best = next_token(written)
        assert each.logprob == pytest.approx((each.token_id == best) - scale, abs=1e-5)
        assert each.top[0][0] == best
        written.append(each.token_id)
    json.loads(written[len(prompt) :])


@pytest.mark.slow
def test_only_the_request_whose_grammar_becomes_too_complex_fails() -> None:
    rig = make_rig(num_blocks=400)
    pattern = follow({"type": "string", "pattern": "([a-z]{1,1000}){1,1000}"})

    async def scenario() -> tuple[BaseException, str]:
        failing, other = rig.submit(b"a", 500, grammar=pattern), rig.submit(b"b", 50)
        results = await asyncio.gather(collect(failing), collect(other), return_exceptions=True)
        assert isinstance(results[0], BaseException)
        assert isinstance(results[1], str)
        return results[0], results[1]

    error, text = run(rig, scenario)
    assert isinstance(error, RequestRefusedError)
    assert error.param == "response_format"
    assert text == continuation(b"b", 50)


def test_logits_that_are_not_finite_still_fail(grammar: Grammar) -> None:
    rig = make_rig()
    compute = rig.model.run

    def broken(chunks: list[SequenceChunk]) -> StepOutput:
        output = compute(chunks)
        output.logits[:, ord("z")] = torch.nan
        return output

    rig.model.run = broken  # type: ignore[method-assign, assignment]

    async def scenario() -> None:
        with pytest.raises(GenerationFailedError, match="not finite"):
            await collect(rig.submit(b"a", 20, grammar=grammar))

    run(rig, scenario)


def test_logits_may_be_more_or_fewer_than_tokens(grammar: Grammar) -> None:
    for size in (VOCABULARY + 44, ord("}") + 1):
        logits = torch.zeros((1, size))
        logits[0, -1] = 50.0
        state = SamplingState(SamplingParams(9, temperature=0), 0, [1], 1, grammar)
        assert sample(logits, [state]) == [ord("{")]
