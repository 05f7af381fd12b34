"""Log probabilities in the model's own distribution, before penalties and temperature."""

from __future__ import annotations

import math
from collections.abc import Sequence as AbstractSequence

import torch

from server.engine.interface import GenerationFailedError, TokenLogprobs, TopLogprobs
from server.engine.sampling.grouped_logits import GroupedLogits
from server.engine.sequence import Sequence

HEAD = 32  # most likely tokens to find; constant, so that the order of ties is batch-invariant
NOT_FINITE = "the model computed logits that are not finite numbers; try --dtype float32"


def collect_prompt_logprobs(sequence: Sequence, logits: torch.Tensor) -> None:
    """Add the logprobs of the prompt tokens that a chunk's tokens predict to the sequence.

    A prompt that is computed again after a preemption gives some of them again; these are ignored.

    Args:
        sequence: in its state before the chunk.
        logits: float32 ``(tokens of the chunk, vocabulary)``.

    Raises:
        GenerationFailedError: the logits are not finite.
    """
    first = sequence.num_cached + 1  # token that the first row predicts; no row predicts the prompt's first token
    start = max(first, len(sequence.prompt_logprobs) + 1)
    token_ids = sequence.token_ids[start : min(first + len(logits), sequence.sampling.num_prompt_tokens)]
    if token_ids:
        num_top = sequence.sampling.params.prompt_logprobs or 0
        rows = logits[start - first :][: len(token_ids)]
        sequence.prompt_logprobs += token_logprobs(rows, token_ids, [num_top] * len(token_ids))


@torch.inference_mode()
def token_logprobs(
    logits: torch.Tensor, token_ids: AbstractSequence[int], num_top: AbstractSequence[int]
) -> list[TokenLogprobs]:
    """Return the log-softmax of one token of each row, and of its most likely tokens, ties by ascending id.

    Args:
        logits: float32 ``(rows, vocabulary)``.
        token_ids: one token of each row.
        num_top: number of most likely tokens of each row, at most ``HEAD`` and the vocabulary's size.

    Raises:
        GenerationFailedError: logits are not finite.
    """
    grouped = GroupedLogits(logits)
    if not all(grouped.are_finite()):
        raise GenerationFailedError(NOT_FINITE)
    rows = torch.arange(len(logits), device=logits.device)
    weights = grouped.group_weights(rows, torch.ones(len(rows), device=logits.device))
    logs = [
        math.log(weight) for weight in weights.cumsum(-1)[:, -1].tolist()
    ]  # torch's log depends on the position in the tensor
    total = (grouped.maxima.double() + torch.tensor(logs, device=logits.device, dtype=torch.float64))[:, None]
    chosen = logits.gather(1, torch.tensor(token_ids, device=logits.device)[:, None]) - total
    _, tokens = grouped.largest(rows, min(HEAD, grouped.size))
    tokens = tokens.sort(-1).values
    values, order = logits.gather(1, tokens).sort(dim=-1, descending=True, stable=True)
    best = zip(tokens.gather(1, order).tolist(), (values - total).tolist(), strict=True)
    return [
        TokenLogprobs(token_id, logprob, TopLogprobs(best_tokens[:count], best_logprobs[:count]))
        for token_id, logprob, count, (best_tokens, best_logprobs) in zip(
            token_ids, chosen[:, 0].tolist(), num_top, best, strict=True
        )
    ]
