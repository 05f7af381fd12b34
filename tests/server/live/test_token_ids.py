"""Tokens of prompts and choices, with the openai package: over a socket, from the real engine."""

from __future__ import annotations

import openai


def test_a_choice_returns_its_tokens_and_those_of_its_prompt(openai_client: openai.OpenAI) -> None:
    """Tokens are bytes here."""
    more = {"return_token_ids": True}
    reply = openai_client.completions.create(model="fake", prompt="Hi", max_tokens=5, temperature=0, extra_body=more)
    (choice,) = reply.model_dump()["choices"]
    assert (bytes(choice["prompt_token_ids"]), bytes(choice["token_ids"])) == (b"Hi", choice["text"].encode())
