"""Sampling state of a sequence. Torch-free."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import cast

import numpy as np
import numpy.typing as npt

from server.engine.interface import Grammar, SamplingParams
from server.engine.sampling.grammar import GrammarMatcher
from server.engine.sampling.random_numbers import uniforms
from server.kernels.native.structures.sampling import RowSampling

MIN_TEMPERATURE = 1e-3  # practically greedy, and quotients of logits stay finite


class TokenCounts:
    """Counts of generated tokens; prompt tokens may be among them with a count of 0.

    The counts are arrays that grow with the text, so that a step copies them instead of iterating over all tokens.
    """

    def __init__(self, prompt_ids: list[int]):
        self._ids = np.unique(np.array(prompt_ids, np.int64))
        self._counts = np.zeros(len(self._ids), np.float32)
        self._size = len(self._ids)
        self._places: dict[int, int] = {token: place for place, token in enumerate(self._ids.tolist())}

    def add(self, token_id: int) -> None:
        """Count a generated token."""
        place = self._places.get(token_id)
        if place is None:
            place = self._places[token_id] = self._size
            if place == len(self._ids):
                growth = max(16, place)
                self._ids = np.concatenate([self._ids, np.empty(growth, np.int64)])
                self._counts = np.concatenate([self._counts, np.empty(growth, np.float32)])
            self._ids[place], self._counts[place] = token_id, 0
            self._size += 1
        self._counts[place] += 1

    @property
    def ids(self) -> npt.NDArray[np.int64]:
        """The distinct tokens, ``(distinct,)``."""
        return self._ids[: self._size]

    @property
    def counts(self) -> npt.NDArray[np.float32]:
        """Number of times that each was generated, ``(distinct,)``."""
        return self._counts[: self._size]


@dataclass
class SamplingState:
    """Sampling parameters and token counts of a sequence; ``token_ids`` is the sequence's own list, which grows."""

    params: SamplingParams
    seed: int
    token_ids: list[int]  # prompt and generated
    num_prompt_tokens: int
    grammar: Grammar | None = None  # the compiled one of ``params``
    _counts: TokenCounts | None = field(default=None, init=False)
    _num_counted: int = field(default=0, init=False)

    @property
    def num_generated(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    def draws(self, count: int) -> list[float]:
        """Return the random numbers of its next tokens; zeros if none is random."""
        if not self.params.temperature:
            return [0.0] * count
        first = self.num_generated
        return uniforms([self.seed] * count, [first + index for index in range(count)])

    @property
    def is_too_short(self) -> bool:
        """True if it has fewer than ``min_tokens`` tokens."""
        return self.num_generated < self.params.min_tokens

    @property
    def is_greedy(self) -> bool:
        """True if the next token is the argmax of the unchanged logits."""
        return not self.params.temperature and not self.changes_logits

    @cached_property
    def is_plain(self) -> bool:
        """True if no token depends on more than the logits and temperature, top-k, top-p and min-p."""
        params = self.params
        return not (self._always_changes or params.min_tokens or params.masked_tokens or params.masked_first_tokens)

    @property
    def changes_logits(self) -> bool:
        """True if the next token depends on more, masked tokens aside."""
        return self._always_changes or self.is_too_short

    @cached_property
    def _always_changes(self) -> bool:
        params = self.params
        return self.grammar is not None or params.has_penalties or bool(params.logit_bias) or params.has_masks

    @property
    def needs_host(self) -> bool:
        """True if the choice of the next token takes what is in the host's memory alone: grammars, masks, biases."""
        params = self.params
        return self.grammar is not None or bool(params.logit_bias) or params.has_masks or bool(self.masked)

    @cached_property
    def divisor(self) -> float:
        """The divisor of logits, above 0."""
        return max(self.params.temperature, MIN_TEMPERATURE)

    @cached_property
    def log_min_p(self) -> float:
        """The logarithm of ``min_p``."""
        return math.log(self.params.min_p) if self.params.min_p > 0 else -math.inf

    @cached_property
    def row(self) -> RowSampling:
        """Its parameters as the native kernels take them, without what belongs to one token; kernels get a copy."""
        params = self.params
        return RowSampling(0.0, params.top_p, self.divisor if params.temperature else 0.0, self.log_min_p, params.top_k)

    @cached_property
    def matcher(self) -> GrammarMatcher | None:
        """Matcher of its grammar, if it has one."""
        return None if self.grammar is None else cast("GrammarMatcher", self.grammar.matcher())

    @cached_property
    def biases(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """The distinct tokens of ``logit_bias``, and the values added to their logits."""
        token_ids, values = zip(*self.params.logit_bias, strict=True)
        return np.array(token_ids, np.int64), np.array(values, np.float32)

    @cached_property
    def allowed(self) -> npt.NDArray[np.int64] | None:
        """The tokens of ``allowed_token_ids``, ascending."""
        allowed = self.params.allowed_token_ids
        return None if allowed is None else np.array(sorted(allowed), np.int64)

    @property
    def masked(self) -> frozenset[int]:
        """The tokens of ``masked_tokens``, and at the beginning those of ``masked_first_tokens``."""
        params = self.params
        return params.masked_tokens if self.num_generated else params.masked_tokens | params.masked_first_tokens

    @property
    def forbidden(self) -> list[int]:
        """The tokens that would complete one of ``bad_words``."""
        count, token_ids = self.num_generated, self.token_ids
        return [
            last
            for *before, last in self.params.bad_words
            if len(before) <= count and token_ids[len(token_ids) - len(before) :] == before
        ]

    @property
    def counts(self) -> TokenCounts:
        """Counts of generated tokens; prompt tokens are included with 0 if repetition is penalised."""
        if self._counts is None:
            is_prompt_counted = self.params.repetition_penalty != 1
            self._counts = TokenCounts(self.token_ids[: self.num_prompt_tokens] if is_prompt_counted else [])
            self._num_counted = self.num_prompt_tokens
        for token_id in self.token_ids[self._num_counted :]:
            self._counts.add(token_id)
        self._num_counted = len(self.token_ids)
        return self._counts
