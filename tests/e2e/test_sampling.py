"""Sampling parameters and logprobs through the openai package, on the bundled model."""

from __future__ import annotations

from collections import Counter
from typing import Any

import openai
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from server.model.checkpoint.locate import BUNDLED

MODEL = "greenroom-demo"
PROMPT = "The Mayor shall appoint"
QUESTION = [{"role": "user", "content": "Write a recipe for crème brûlée. 🍮"}]
LOOP = "No, no, no,"
END = 2  # <|im_end|>


@pytest.fixture
def complete(client: openai.OpenAI) -> Any:
    """A completion's only choice; parameters that OpenAI has not go into ``extra``."""

    def send(extra: dict[str, Any] | None = None, **body: Any) -> Any:
        options = {"model": MODEL, "prompt": PROMPT, "max_tokens": 24, "temperature": 0} | body
        return client.completions.create(**options, extra_body=extra).choices[0]

    return send


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(BUNDLED)


def stock_logprobs(tokenizer: Any, text: str) -> tuple[list[int], torch.Tensor]:
    """The tokens of a text, and what transformers predicts for each but the first ``(tokens - 1, vocabulary)``."""
    model = AutoModelForCausalLM.from_pretrained(BUNDLED, dtype=torch.float32)
    token_ids = tokenizer.encode(text)
    with torch.inference_mode():
        return token_ids, model(torch.tensor([token_ids])).logits[0, :-1].log_softmax(-1)


def test_an_echo_is_scored_as_transformers_scores_it(complete: Any, tokenizer: Any) -> None:
    choice = complete(max_tokens=0, echo=True, logprobs=3)
    token_ids, expected = stock_logprobs(tokenizer, PROMPT)
    assert (choice.text, choice.finish_reason) == (PROMPT, "length")
    assert choice.logprobs.tokens == [tokenizer.decode([token]) for token in token_ids]
    assert choice.logprobs.token_logprobs[0] is None
    own = expected.gather(1, torch.tensor(token_ids[1:])[:, None])[:, 0].tolist()
    assert choice.logprobs.token_logprobs[1:] == pytest.approx(own, abs=1e-3)
    for top, row in zip(choice.logprobs.top_logprobs[1:], expected, strict=True):
        assert list(top.values())[:3] == pytest.approx(row.topk(3).values.tolist(), abs=1e-3)
    starts = [PROMPT[offset:] for offset in choice.logprobs.text_offset]
    assert all(start.startswith(token) for start, token in zip(starts, choice.logprobs.tokens, strict=True))


def test_logprobs_of_a_completion_are_those_of_the_same_text_as_a_prompt(complete: Any) -> None:
    written = complete(echo=True, logprobs=2)
    scored = complete(prompt=written.text, echo=True, logprobs=2, max_tokens=0)
    assert scored.text == written.text
    assert scored.logprobs.tokens == written.logprobs.tokens
    assert scored.logprobs.text_offset == written.logprobs.text_offset
    assert scored.logprobs.token_logprobs[1:] == pytest.approx(written.logprobs.token_logprobs[1:], abs=1e-3)
    assert [max(top.values()) for top in written.logprobs.top_logprobs[-24:]] == written.logprobs.token_logprobs[-24:]


def test_logprobs_are_the_models_own_whatever_changes_the_choice(complete: Any) -> None:
    plain = complete(logprobs=5, max_tokens=1)
    changed = complete(
        logprobs=5, max_tokens=1, temperature=2, presence_penalty=2, extra={"repetition_penalty": 2, "top_k": 1}
    )
    likeliest = [list(choice.logprobs.top_logprobs[0].items())[:5] for choice in (plain, changed)]
    assert [token for token, _ in likeliest[0]] == [token for token, _ in likeliest[1]]
    assert [logprob for _, logprob in likeliest[0]] == pytest.approx([logprob for _, logprob in likeliest[1]], abs=1e-4)


def test_streamed_and_complete_logprobs_are_the_same(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": MODEL, "prompt": PROMPT, "max_tokens": 30, "seed": 3, "logprobs": 2}
    for echo in (False, True):
        whole = client.completions.create(**options, echo=echo).choices[0]
        pieces = [chunk.choices[0] for chunk in client.completions.create(**options, echo=echo, stream=True)]
        assert "".join(piece.text for piece in pieces) == whole.text
        lists = [piece.logprobs for piece in pieces if piece.logprobs is not None]
        for name in ("tokens", "text_offset"):
            assert [value for each in lists for value in getattr(each, name)] == getattr(whole.logprobs, name)


def test_the_bytes_of_chat_tokens_are_the_text(client: openai.OpenAI) -> None:
    """A bias makes the model write parts of characters."""
    options: dict[str, Any] = {
        "model": MODEL,
        "messages": QUESTION,
        "max_tokens": 40,
        "temperature": 2,
        "seed": 1,
        "logprobs": True,
        "top_logprobs": 3,
        "logit_bias": {str(token): 6 for token in range(97, 259)},
    }
    whole = client.chat.completions.create(**options).choices[0]
    content = whole.logprobs.content
    assert len(content) == 40
    data = b"".join(bytes(token.bytes) for token in content)
    assert data.decode(errors="replace") == whole.message.content
    assert any(token.token == "\ufffd" for token in content)
    assert all(token.top_logprobs[0].logprob >= token.top_logprobs[1].logprob for token in content)
    chunks = [chunk.choices[0] for chunk in client.chat.completions.create(**options, stream=True)]
    streamed = [token for chunk in chunks if chunk.logprobs for token in chunk.logprobs.content]
    assert [token.bytes for token in streamed] == [token.bytes for token in content]
    assert "".join(chunk.delta.content or "" for chunk in chunks) == whole.message.content


def test_the_end_token_is_listed(client: openai.OpenAI) -> None:
    choice = client.chat.completions.create(
        model=MODEL, messages=QUESTION, logprobs=True, logit_bias={str(END): 100}
    ).choices[0]
    assert (choice.message.content, choice.finish_reason) == ("", "stop")
    assert [token.token for token in choice.logprobs.content] == ["<|im_end|>"]


def test_an_echo_lists_the_end_token(complete: Any, tokenizer: Any) -> None:
    """lm-eval takes the logprobs of a choice to be those between the prompt and the last token."""
    prompt = tokenizer.encode(PROMPT)
    choice = complete(prompt=prompt, max_tokens=1, echo=True, logprobs=1, logit_bias={str(END): 100})
    assert (choice.text, choice.finish_reason) == (PROMPT, "stop")
    assert len(choice.logprobs.token_logprobs) == len(choice.logprobs.text_offset) == len(prompt) + 1
    assert (choice.logprobs.tokens[-1], choice.logprobs.text_offset[-1]) == ("<|im_end|>", len(PROMPT))
    assert choice.logprobs.token_logprobs[-1] < 0


def test_min_tokens_keeps_the_end_away(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(
        model=MODEL, messages=QUESTION, max_tokens=20, logit_bias={str(END): 100}, extra_body={"min_tokens": 7}
    )
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage.completion_tokens == 8


def test_a_bias_forces_and_forbids_tokens(complete: Any, tokenizer: Any) -> None:
    token = tokenizer.encode(" the")[0]
    assert complete(logit_bias={str(token): 100}, max_tokens=5).text == " the" * 5
    plain = complete(max_tokens=1).text
    forbidden = tokenizer.encode(plain)[0]
    assert complete(logit_bias={str(forbidden): -100}, max_tokens=1).text != plain


@pytest.mark.parametrize("penalty", ["frequency_penalty", "presence_penalty", "repetition_penalty"])
def test_penalties_make_repetition_rarer(complete: Any, penalty: str) -> None:
    """Greedy text of this model runs in circles; the most frequent token becomes rarer."""

    def most_frequent(extra: dict[str, Any]) -> int:
        choice = complete(prompt=LOOP, max_tokens=60, logprobs=0, extra=extra | {"ignore_eos": True})
        return Counter(choice.logprobs.tokens).most_common(1)[0][1]

    assert most_frequent({penalty: 2}) < most_frequent({})


def test_a_seed_repeats_the_choices_whatever_their_number(client: openai.OpenAI) -> None:
    def texts(n: int, seed: int) -> list[str]:
        reply = client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=30, n=n, seed=seed)
        return [choice.text for choice in reply.choices]

    first = texts(4, 5)
    assert len(set(first)) == 4
    assert texts(4, 5) == first
    assert texts(1, 5) == first[:1]
    assert texts(1, 6) != first[:1]


def test_a_stop_string_before_min_tokens_is_text(complete: Any) -> None:
    text = complete().text
    stop = text[4:7]
    assert complete(stop=stop).text == text[: text.index(stop)]
    assert complete(stop=stop, extra={"min_tokens": 24}).text == text


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"logit_bias": {"4096": 1}}, "logit_bias"),
        ({"extra": {"stop_token_ids": [4096]}}, "stop_token_ids"),
        ({"extra": {"min_tokens": 25}}, "min_tokens"),
        ({"logprobs": 21}, "logprobs"),
        ({"max_tokens": 0}, "max_tokens"),
    ],
)
def test_unsupported_parameters_are_refused(complete: Any, body: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as refusal:
        complete(**body)
    assert refusal.value.param == param


def test_a_request_that_takes_too_long_ends_with_an_error(complete: Any) -> None:
    with pytest.raises(openai.APIStatusError) as failure:
        complete(max_tokens=1500, extra={"timeout": 0.02, "ignore_eos": True})
    assert failure.value.status_code == 504
