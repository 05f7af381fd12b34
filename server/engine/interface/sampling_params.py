"""Parameters of sampling and of the end of a completion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

from server.engine.interface.errors import RequestRefusedError


@dataclass(frozen=True)
class GrammarSpec:
    """Form that a completion must have: any JSON object, JSON of a schema, or text of a grammar.

    ``text`` is the schema as JSON, or the grammar in llguidance's dialect of Lark, where ``%json {...}`` stands for
    JSON of a schema between other text. ``x-guidance`` in a schema bounds the white space. An ``own`` grammar is the
    client's, and followed to the letter; otherwise no object in the text has a key twice.
    """

    kind: Literal["json_object", "json_schema", "lark", "own"]
    text: str = ""
    param: str = "response_format"  # the request's parameter, for errors

    @property
    def has_unique_keys(self) -> bool:
        return self.kind != "own"


class Grammar(Protocol):
    """A compiled ``GrammarSpec``, for any number of sequences at once.

    Requests carry the ``spec``, by which the engine finds the grammar again while somebody holds it.
    """

    @property
    def spec(self) -> GrammarSpec:
        """The form that it was compiled from."""

    def matcher(self) -> Any:
        """Return a matcher that follows one sequence; only the engine uses it."""


@dataclass(frozen=True)
class SamplingParams:
    """Parameters of one completion."""

    max_tokens: int
    temperature: float = 1.0  # 0 is greedy
    top_p: float = 1.0
    top_k: int = 0  # 0 is all
    min_p: float = 0.0
    presence_penalty: float = 0.0  # over generated tokens, as is frequency_penalty
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0  # over prompt and generated tokens
    logit_bias: tuple[tuple[int, float], ...] = ()  # token id and the value added to its logit, each token once
    allowed_token_ids: frozenset[int] | None = None  # no other token is generated; None allows all
    bad_words: frozenset[tuple[int, ...]] = frozenset()  # tokens that are never generated one after the other
    masked_tokens: frozenset[int] = frozenset()  # tokens that are never generated; those the model lacks are ignored
    masked_first_tokens: frozenset[int] = frozenset()  # tokens that are not generated first
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    ignore_eos: bool = False
    min_tokens: int = 0  # tokens before anything but max_tokens may end the sequence
    logprobs: int | None = None  # number of most likely tokens to report with each generated token
    prompt_logprobs: int | None = None  # the same for each prompt token
    written_tokens: frozenset[int] = frozenset()  # special tokens that are written as text
    grammar: GrammarSpec | None = None  # restricts the next token, and ends the sequence when complete

    @property
    def has_penalties(self) -> bool:
        return self.presence_penalty != 0 or self.frequency_penalty != 0 or self.repetition_penalty != 1

    @property
    def has_masks(self) -> bool:
        return self.allowed_token_ids is not None or bool(self.bad_words)

    @property
    def has_filters(self) -> bool:
        """True if top-k, top-p or min-p is in use."""
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0


@dataclass(frozen=True)
class SamplingDefaults:
    """A model's defaults for parameters that a request leaves out.

    Args:
        max_new_tokens: the most that a completion may have, whatever the request says; None without such a limit.
        stop: texts that end the completions of requests that name none.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_new_tokens: int | None = None
    stop: tuple[str, ...] = ()


def check_sampling(sampling: SamplingParams, vocab_size: int) -> None:
    """Refuse token ids that the model does not have.

    Raises:
        RequestRefusedError: ``param`` names the parameter that holds one.
    """
    for param, token_ids in (
        ("logit_bias", [token for token, _ in sampling.logit_bias]),
        ("stop_token_ids", sampling.stop_token_ids),
        ("allowed_token_ids", sampling.allowed_token_ids or ()),
        ("bad_words", [token for word in sampling.bad_words for token in word]),
    ):
        unknown = next((token for token in token_ids if not 0 <= token < vocab_size), None)
        if unknown is not None:
            raise RequestRefusedError(f"'{param}' holds token id {unknown}, which is not below {vocab_size}", param)
