"""How the tokens of a completion are chosen, and when it stops."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

from .errors import RequestRefusedError


@dataclass(frozen=True)
class GrammarSpec:
    """What a completion has to be: any JSON object, JSON of a schema, or a text of a grammar.

    ``text`` is the schema as JSON, or the grammar in llguidance's dialect of Lark, where ``%json {...}`` stands for
    JSON of a schema between other text. ``x-guidance`` in a schema bounds the white space.
    """

    kind: Literal["json_object", "json_schema", "lark"]
    text: str = ""
    param: str = "response_format"  # of the request, for errors


class Grammar(Protocol):
    """A compiled ``GrammarSpec``, which any number of sequences may follow at once."""

    def matcher(self) -> Any:
        """What follows one sequence; the engine's affair."""


@dataclass(frozen=True)
class SamplingParams:
    """How to choose tokens, and when to stop."""

    max_tokens: int
    temperature: float = 1.0  # 0 is greedy
    top_p: float = 1.0
    top_k: int = 0  # 0 is all
    min_p: float = 0.0
    presence_penalty: float = 0.0  # over generated tokens, as is the next
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0  # over prompt and generated tokens
    logit_bias: tuple[tuple[int, float], ...] = ()  # token id and what is added to its logit, each token once
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    ignore_eos: bool = False
    min_tokens: int = 0  # generated before anything but max_tokens may end the sequence
    logprobs: int | None = None  # of each generated token, and so many of the likeliest beside it
    prompt_logprobs: int | None = None  # the same of each prompt token
    written_tokens: frozenset[int] = frozenset()  # special tokens that are text, as others are not
    grammar: Grammar | None = None  # leaves possible what it allows next, and ends the sequence when it is complete

    @property
    def has_penalties(self) -> bool:
        return self.presence_penalty != 0 or self.frequency_penalty != 0 or self.repetition_penalty != 1

    @property
    def has_filters(self) -> bool:
        """Whether some tokens are impossible because others are likelier."""
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0


@dataclass(frozen=True)
class SamplingDefaults:
    """What a model wants where a request does not say."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0


def check_sampling(sampling: SamplingParams, vocab_size: int) -> None:
    """Refuse token ids that the model does not have.

    Raises:
        RequestRefusedError: with the parameter that holds one.
    """
    for param, token_ids in (
        ("logit_bias", [token for token, _ in sampling.logit_bias]),
        ("stop_token_ids", sampling.stop_token_ids),
    ):
        unknown = next((token for token in token_ids if not 0 <= token < vocab_size), None)
        if unknown is not None:
            raise RequestRefusedError(f"'{param}' holds token id {unknown}, which is not below {vocab_size}", param)
