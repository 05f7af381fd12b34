"""Measures on held-out text which adapter the model ``auto`` chooses, and what that gains."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np

from training.auto_chats import ADAPTERS, measure_chats
from training.corpus import Domain
from training.serving import prompt_logprobs

CHARACTERS = 1000  # of a text
OWN_TEXTS, OTHER_TEXTS = 12, 4  # of a domain that an adapter is for, and of another one


@dataclass(frozen=True)
class Choices:
    """The choices of ``auto`` for the texts of a domain, and the loss of their tokens."""

    chosen: dict[str, int]  # number of texts by model
    tokens: int
    nats: float  # with the chosen models
    base_nats: float  # with the base model


def choose_for_texts(client: httpx.Client, base: str, texts: Iterable[str]) -> Choices:
    """Send texts to the model ``auto``, and to the base model."""
    chosen: dict[str, int] = {}
    nats = base_nats = 0.0
    tokens = 0
    for text in texts:
        reply = prompt_logprobs(client, "auto", text)
        chosen[reply.model] = chosen.get(reply.model, 0) + 1
        nats -= sum(reply.logprobs)
        base_nats -= sum(prompt_logprobs(client, base, text).logprobs)
        tokens += len(reply.logprobs)
    return Choices(chosen, tokens, nats, base_nats)


def measure_auto(
    client: httpx.Client, base: str, domains: dict[str, Domain], adapters: Iterable[str]
) -> dict[str, Any]:
    """Return what ``auto`` chooses by domain, and the perplexity of the adapters' domains with it and without it."""
    own = set(adapters)
    found = {
        name: choose_for_texts(client, base, passages(domain, OWN_TEXTS if name in own else OTHER_TEXTS))
        for name, domain in domains.items()
    }
    with_adapter = [found[name] for name in sorted(own)]
    tokens = sum(choices.tokens for choices in with_adapter)
    chats = {"chats": measure_chats(client, base)} if own == {*ADAPTERS} else {}
    return chats | {
        "chosen": {name: choices.chosen for name, choices in found.items()},
        "tokens": tokens,
        "perplexity": {
            "base": round(math.exp(sum(choices.base_nats for choices in with_adapter) / tokens), 3),
            "auto": round(math.exp(sum(choices.nats for choices in with_adapter) / tokens), 3),
        },
    }


def passages(domain: Domain, count: int) -> list[str]:
    """Return passages of held-out documents, evenly spaced."""
    cut = [
        text[start : start + CHARACTERS]
        for text in domain.held_out_texts
        for start in range(0, max(1, len(text) - CHARACTERS // 2), CHARACTERS)
    ]
    return [cut[index] for index in np.linspace(0, len(cut) - 1, min(count, len(cut))).astype(int)]
