"""How likely tokens were in the model's own distribution, before penalties and temperature."""

from __future__ import annotations

import math
from collections.abc import Sequence as AbstractSequence

import torch

from .request import GenerationFailedError, TokenLogprobs
from .sequence import Sequence
from .vocabulary import Vocabulary

HEAD = 32  # likeliest tokens that are looked for, always as many, so that equals do not depend on the company

NOT_FINITE = "the model computed logits that are not finite numbers; try --dtype float32"


def collect_prompt_logprobs(sequence: Sequence, logits: torch.Tensor) -> None:
    """Keep the logprobs of the prompt's tokens that the tokens of a chunk predict.

    A prompt that is computed anew after a preemption gives what is known already once more; it is left out.

    Args:
        sequence: as it was before the chunk.
        logits: float32 ``(tokens of the chunk, vocabulary)``.

    Raises:
        GenerationFailedError: the logits are not finite.
    """
    first = sequence.num_cached + 1  # the token that the first row predicts; the prompt's first has no row
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
    """The log-softmax of one token of each row, and its likeliest tokens; of equals among them the smaller id is first.

    Args:
        logits: float32 ``(rows, vocabulary)``.
        token_ids: of each row.
        num_top: of each row, at most ``HEAD`` and the vocabulary's size.

    Raises:
        GenerationFailedError: logits are not finite.
    """
    vocabulary = Vocabulary(logits)
    if not all(vocabulary.are_finite()):
        raise GenerationFailedError(NOT_FINITE)
    rows = torch.arange(len(logits), device=logits.device)
    weights = vocabulary.block_weights(rows, torch.ones(len(rows), device=logits.device))
    logs = [math.log(weight) for weight in weights.cumsum(-1)[:, -1].tolist()]  # torch's depends on the place in a row
    total = (vocabulary.maxima.double() + torch.tensor(logs, device=logits.device, dtype=torch.float64))[:, None]
    chosen = logits.gather(1, torch.tensor(token_ids, device=logits.device)[:, None]) - total
    _, tokens = vocabulary.largest(rows, min(HEAD, vocabulary.size))
    tokens = tokens.sort(-1).values
    values, order = logits.gather(1, tokens).sort(dim=-1, descending=True, stable=True)
    best = zip(tokens.gather(1, order).tolist(), (values - total).tolist(), strict=True)
    return [
        TokenLogprobs(token_id, logprob, tuple(zip(best_tokens[:count], best_logprobs[:count], strict=True)))
        for token_id, logprob, count, (best_tokens, best_logprobs) in zip(
            token_ids, chosen[:, 0].tolist(), num_top, best, strict=True
        )
    ]
