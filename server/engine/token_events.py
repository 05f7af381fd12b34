"""Conversion of logits to token events: sample, detokenise, check for the end."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as AbstractSequence
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch

from server.engine.interface import (
    EngineError,
    FinishReason,
    GenerationFailedError,
    RequestRefusedError,
    TokenEvent,
    TokenLogprobs,
)
from server.engine.sampling.logprobs import NOT_FINITE, token_logprobs
from server.engine.sampling.sampler import sample
from server.engine.sequence import Sequence
from server.model.step import HostLogits

if TYPE_CHECKING:
    from server.kernels.native.library import Kernels

NOTHING_ALLOWED = "no token may come next: allow more of them in 'allowed_token_ids', or forbid fewer 'bad_words'"


def token_events(
    sequences: AbstractSequence[Sequence],
    logits: torch.Tensor | HostLogits,
    eos_token_ids: frozenset[int],
    kernels: Kernels | None = None,
) -> list[TokenEvent | EngineError]:
    """Sample the next token of each sequence and append it.

    Args:
        logits: float32 ``(sequences, vocabulary)``; they are changed.
        eos_token_ids: tokens that end a sequence.
        kernels: choose the tokens; torch does without them.

    Returns:
        The event of each sequence. An event with a finish reason is its last, and so is an error. One that
        ``lacks_text`` gets it by ``add_text``, in the order of its sequence's events.
    """
    if not sequences:
        return []
    listed = [row for row, sequence in enumerate(sequences) if sequence.sampling.params.logprobs is not None]
    own_logits = None
    if listed:
        logits = logits.tensor() if isinstance(logits, HostLogits) else logits
        own_logits = logits[listed]  # a copy, because the sampler changes them
    tokens = sample(logits, [sequence.sampling for sequence in sequences], eos_token_ids, kernels)
    logprobs = {} if own_logits is None else _logprobs(sequences, tokens, listed, own_logits)
    return events_of_tokens(sequences, tokens, eos_token_ids, logprobs)


def events_of_tokens(
    sequences: AbstractSequence[Sequence],
    tokens: AbstractSequence[int | None],
    eos_token_ids: frozenset[int],
    logprobs: Mapping[int, TokenLogprobs] = MappingProxyType({}),
) -> list[TokenEvent | EngineError]:
    """Append the next token of each sequence; returns as ``token_events``.

    Args:
        tokens: the chosen ones; None for a sequence without any.
        eos_token_ids: tokens that end a sequence.
        logprobs: by the index of the sequence.
    """
    return [
        _failure(sequence) if token is None else _append(sequence, token, logprobs.get(row), eos_token_ids)
        for row, (sequence, token) in enumerate(zip(sequences, tokens, strict=True))
    ]


def _logprobs(
    sequences: AbstractSequence[Sequence],
    tokens: AbstractSequence[int | None],
    listed: AbstractSequence[int],
    logits: torch.Tensor,
) -> dict[int, TokenLogprobs]:
    """Return the logprobs of the chosen tokens by row, for the rows ``listed`` that chose one."""
    chosen = [(index, row, token) for index, row in enumerate(listed) if (token := tokens[row]) is not None]
    if not chosen:
        return {}
    indices, rows, token_ids = zip(*chosen, strict=True)
    counts = [sequences[row].sampling.params.logprobs or 0 for row in rows]
    return dict(zip(rows, token_logprobs(logits[list(indices)], token_ids, counts), strict=True))


def _failure(sequence: Sequence) -> EngineError:
    """Return the reason why no token can be chosen."""
    matcher = sequence.sampling.matcher
    error = None if matcher is None else matcher.error
    params = sequence.sampling.params
    if error is None and params.has_masks:
        return RequestRefusedError(
            NOTHING_ALLOWED, "bad_words" if params.allowed_token_ids is None else "allowed_token_ids"
        )
    return GenerationFailedError(NOT_FINITE) if error is None else error


def _append(
    sequence: Sequence, token: int, logprobs: TokenLogprobs | None, eos_token_ids: frozenset[int]
) -> TokenEvent:
    """Append a token to a sequence and return its event."""
    sampling, text = sequence.sampling, sequence.text
    params, matcher = sampling.params, sampling.matcher
    num_generated = sequence.num_generated + 1
    is_first = num_generated == 1
    prompt_logprobs = tuple(sequence.prompt_logprobs) if is_first and params.prompt_logprobs is not None else None
    if params.max_tokens == 0:
        return TokenEvent("", 0, FinishReason.LENGTH, (), prompt_logprobs, expert_usage=sequence.expert_usage)
    sequence.append(token)
    if matcher is not None:
        matcher.accept(token)
    # A grammar allows an end token only where its text may end, so it also ends a sequence that ignores end tokens.
    is_eos = token in eos_token_ids and (matcher is not None or not params.ignore_eos)
    ends = is_eos or token in params.stop_token_ids
    listed = () if logprobs is None else (replace(logprobs, text_offset=text.num_characters),)
    may_stop = text.can_stop and num_generated > params.min_tokens
    ends_later = not ends and not may_stop and matcher is None and num_generated != params.max_tokens
    new = "" if ends or ends_later else text.push(token, may_stop=may_stop)
    reason = usage = None
    if ends or text.stopped_by is not None or (matcher is not None and matcher.is_complete):
        reason = FinishReason.STOP
    elif num_generated == params.max_tokens:
        reason = FinishReason.LENGTH
    if reason is not None:
        new += text.flush()
        usage = sequence.expert_usage
    return TokenEvent(
        new,
        num_generated,
        reason,
        logprobs=listed,
        prompt_logprobs=prompt_logprobs,
        stop=text.stopped_by,
        experts=sequence.last_experts,
        expert_usage=usage,
        token_id=token,
        adapters=sequence.last_adapters,
        adapter_shares=None if sequence.weights is None else sequence.take_adapter_shares(),
        lacks_text=ends_later,
    )


def add_text(sequence: Sequence, event: TokenEvent) -> None:
    """Add the text of the token to an event that lacks it."""
    assert event.token_id is not None
    event.text = sequence.text.push(event.token_id, may_stop=False)
    event.lacks_text = False
