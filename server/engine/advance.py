"""Logits to the next event of each sequence: sample, detokenise, look whether it ends."""

from __future__ import annotations

import random
from collections.abc import Sequence as AbstractSequence

import torch

from .request import FinishReason, TokenEvent
from .sampler import sample
from .sequence import Sequence


def advance(
    sequences: AbstractSequence[Sequence], logits: torch.Tensor, eos_token_ids: frozenset[int]
) -> list[TokenEvent]:
    """Give each sequence its next token.

    Args:
        logits: float32 ``(sequences, vocabulary)``.
        eos_token_ids: tokens that end a sequence.

    Returns:
        The event of each sequence; one with a finish reason is its last.
    """
    tokens = sample(
        logits,
        [sequence.request.sampling for sequence in sequences],
        [_draw(sequence) for sequence in sequences],
    )
    return [_append(sequence, token, eos_token_ids) for sequence, token in zip(sequences, tokens, strict=True)]


def _append(sequence: Sequence, token: int, eos_token_ids: frozenset[int]) -> TokenEvent:
    sequence.token_ids.append(token)
    sampling = sequence.request.sampling
    ends = token in sampling.stop_token_ids or (token in eos_token_ids and not sampling.ignore_eos)
    text = "" if ends else sequence.text.push(token)
    reason = None
    if ends or sequence.text.is_stopped:
        reason = FinishReason.STOP
    elif sequence.num_generated == sampling.max_tokens:
        reason = FinishReason.LENGTH
    if reason is not None:
        text += sequence.text.flush()
    return TokenEvent(text, sequence.num_generated, reason)


def _draw(sequence: Sequence) -> float:
    """The uniform number for a sequence's next token; depends on its seed and position alone."""
    return random.Random(f"{sequence.seed}:{sequence.num_generated}").random()  # noqa: S311  not for secrets
