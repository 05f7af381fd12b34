"""Logprobs: the log-softmax of the model's own logits, for prompt and generated tokens."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

from server.engine.interface import (
    FinishReason,
    GenerationFailedError,
    RequestRefusedError,
    SamplingParams,
    TokenEvent,
    TokenLogprobs,
    check_sampling,
)
from server.engine.sampling.logprobs import token_logprobs
from server.model.step import SequenceChunk, StepOutput
from tests.server.engine.fakes import VOCABULARY, Rig, continuation, next_token, run


def softmaxed(logits: torch.Tensor, token_ids: list[int]) -> list[float]:
    values: list[float] = logits.double().log_softmax(-1).gather(1, torch.tensor(token_ids)[:, None])[:, 0].tolist()
    return values


@pytest.mark.parametrize("size", [10, 256, 5000])
def test_values_are_log_softmax_and_the_most_likely_come_first(size: int) -> None:
    logits = torch.randn((6, size), generator=torch.Generator().manual_seed(1)) * 4
    chosen = [0, 1, 2, 3, 4, 9]
    found = token_logprobs(logits, chosen, [0, 1, 2, 5, 7, 10])
    assert [each.token_id for each in found] == chosen
    assert [each.logprob for each in found] == pytest.approx(softmaxed(logits, chosen), abs=1e-5)
    for row, each in enumerate(found):
        expected = logits[row].log_softmax(-1).topk(len(each.top))
        assert [token for token, _ in each.top] == expected.indices.tolist()
        assert [logprob for _, logprob in each.top] == pytest.approx(expected.values.tolist(), abs=1e-5)
    assert [len(each.top) for each in found] == [0, 1, 2, 5, 7, 10]


def test_values_are_batch_invariant_and_ties_are_ordered_by_id() -> None:
    logits = (torch.randn((9, 20011), generator=torch.Generator().manual_seed(2)) * 4).round()
    chosen = list(range(9))
    together = token_logprobs(logits, chosen, [20] * 9)
    assert together == [token_logprobs(logits[i : i + 1], [i], [20])[0] for i in range(9)]
    for each in together:
        assert list(each.top) == sorted(each.top, key=lambda pair: (-pair[1], pair[0]))


def test_logits_that_are_not_finite_have_no_logprobs() -> None:
    with pytest.raises(GenerationFailedError, match="not finite"):
        token_logprobs(torch.tensor([[0.0, torch.nan]]), [0], [1])


async def events_of(rig: Rig, prompt: bytes, max_tokens: int, **sampling: Any) -> list[TokenEvent]:
    return [event async for event in rig.submit(prompt, max_tokens, **sampling)]


def likely(tokens: bytes) -> TokenLogprobs:
    """Return the fake model's logits after some tokens: 1 for the token it generates, 0 for all others."""
    best = next_token(tokens[:-1])
    scale = float(torch.tensor([1.0] + [0.0] * (VOCABULARY - 1)).logsumexp(0))
    return TokenLogprobs(tokens[-1], (tokens[-1] == best) - scale, ((best, 1 - scale),))


def approximately(found: TokenLogprobs, expected: TokenLogprobs) -> bool:
    return (
        found.token_id == expected.token_id
        and found.logprob == pytest.approx(expected.logprob, abs=1e-5)
        and found.top == ((expected.top[0][0], pytest.approx(expected.top[0][1], abs=1e-5)),)
    )


def test_every_generated_token_has_its_logprob_even_if_its_text_is_held_back() -> None:
    rig = Rig()
    text = continuation(b"hold", 9)

    async def scenario() -> list[TokenEvent]:
        return await events_of(rig, b"hold", 9, logprobs=1, stop=(text[5:9] + "!", text[2] + "?"))

    events = run(rig, scenario)
    listed = [each for event in events for each in event.logprobs]
    assert all(len(event.logprobs) == 1 for event in events)
    assert any(not event.text for event in events)
    whole = b"hold" + text.encode()
    assert all(approximately(each, likely(whole[: 5 + n])) for n, each in enumerate(listed))
    assert [each.text_offset for each in listed] == list(range(9))


def test_tokens_of_a_stop_string_are_listed() -> None:
    text, rig = continuation(b"stop", 12), Rig()
    events = run(rig, lambda: events_of(rig, b"stop", 12, logprobs=0, stop=(text[3:6],)))
    assert "".join(event.text for event in events) == text[:3]
    assert bytes(each.token_id for event in events for each in event.logprobs).decode() == text[:6]


@pytest.mark.parametrize("way", ["eos", "stop_token_ids"])
def test_the_token_that_ends_the_text_is_listed(way: str) -> None:
    text = continuation(b"stop", 12)
    end = frozenset({ord(text[2])})
    rig = Rig(eos_token_ids=end if way == "eos" else frozenset())
    extra = {} if way == "eos" else {"stop_token_ids": end}
    events = run(rig, lambda: events_of(rig, b"stop", 12, logprobs=1, **extra))
    written = text[: text.index(text[2])]
    assert "".join(event.text for event in events) == written
    listed = [each for event in events for each in event.logprobs]
    assert len(listed) == len(written) + 1
    assert approximately(listed[-1], likely(b"stop" + (written + text[2]).encode()))
    assert listed[-1].text_offset == len(written)


@pytest.mark.parametrize("max_tokens", [0, 3])
@pytest.mark.parametrize("num_blocks", [8, 64])
def test_prompt_logprobs_come_with_the_first_event_however_the_prompt_is_cut(max_tokens: int, num_blocks: int) -> None:
    """With few blocks the request is preempted in its prompt, which is computed again."""
    rig = Rig(num_blocks=num_blocks, max_batched_tokens=6)
    prompt = b"all of this is a prompt"
    are_there = threading.Event()
    rig.model.before_step = lambda: are_there.wait(30)

    async def scenario() -> list[list[TokenEvent]]:
        streams = [rig.submit(b"older", 20), rig.submit(prompt, max_tokens, prompt_logprobs=1)]
        are_there.set()
        return [[event async for event in stream] for stream in streams]

    _, events = run(rig, scenario)
    found = events[0].prompt_logprobs
    assert found is not None
    assert len(found) == len(prompt) - 1
    assert all(approximately(each, likely(prompt[: n + 2])) for n, each in enumerate(found))
    assert all(event.prompt_logprobs is None for event in events[1:])
    assert events[-1].num_generated == max_tokens
    assert events[-1].finish_reason is FinishReason.LENGTH
    assert "".join(event.text for event in events) == continuation(prompt, max_tokens)
    assert (rig.engine.statistics.preemptions > 0) == (num_blocks == 8)


def test_a_prompt_of_one_token_has_empty_logprobs() -> None:
    rig = Rig()

    async def scenario() -> list[TokenEvent]:
        return await events_of(rig, b"x", 1, prompt_logprobs=1)

    assert run(rig, scenario)[0].prompt_logprobs == ()


@pytest.mark.parametrize("sampling", [{}, {"prompt_logprobs": 0}, {"logprobs": 1}])
def test_logits_that_are_not_finite_fail_only_their_request(sampling: dict[str, Any]) -> None:
    rig = Rig()
    run_all = rig.model.run

    def spoil(chunks: list[SequenceChunk]) -> StepOutput:
        output = run_all(chunks)
        row = 0
        for chunk in chunks:
            if ord("!") in chunk.token_ids:
                output.logits[row : row + chunk.num_logits, 5] = torch.nan
            row += chunk.num_logits
        return output

    rig.model.run = spoil  # type: ignore[method-assign,assignment]

    async def scenario() -> None:
        unlucky, lucky = rig.submit(b"bad!", 5, **sampling), rig.submit(b"good", 5)
        with pytest.raises(GenerationFailedError, match="not finite"):
            [event async for event in unlucky]
        assert "".join([event.text async for event in lucky]) == continuation(b"good", 5)

    run(rig, scenario)
    assert rig.engine.statistics.finished == {"error": 1, "length": 1}


def test_no_end_token_is_sampled_before_min_tokens() -> None:
    ends = frozenset(range(ord("a"), ord("z") + 1))
    rig = Rig(eos_token_ids=ends)

    async def scenario() -> list[TokenEvent]:
        return await events_of(rig, b"min", 9, min_tokens=4)

    events = run(rig, scenario)
    assert events[-1].finish_reason is FinishReason.STOP
    assert events[-1].num_generated == 5


@pytest.mark.parametrize(
    ("sampling", "param"),
    [
        ({"logit_bias": ((3, 1.0), (256, 1.0))}, "logit_bias"),
        ({"logit_bias": ((-1, 1.0),)}, "logit_bias"),
        ({"stop_token_ids": frozenset({256})}, "stop_token_ids"),
    ],
)
def test_token_ids_outside_of_the_vocabulary_are_refused(sampling: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestRefusedError, match=f"'{param}' holds token id") as refusal:
        check_sampling(SamplingParams(1, **sampling), 256)
    assert refusal.value.param == param


def test_token_ids_of_the_vocabulary_are_accepted() -> None:
    check_sampling(SamplingParams(1, logit_bias=((0, 1.0), (255, -1.0)), stop_token_ids=frozenset({255})), 256)
