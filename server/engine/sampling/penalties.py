"""Changes of logits before sampling: grammars, penalties, biases, ``min_tokens``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from server.engine.sampling.grammar_masks import mask_by_grammars
from server.engine.sampling.sampling_state import SamplingState


def adjust(logits: torch.Tensor, states: Sequence[SamplingState], eos_token_ids: frozenset[int]) -> list[int]:
    """Change the logits of each row in place as its parameters require.

    First, grammars, ``allowed_token_ids`` and ``bad_words`` mask tokens, which no later change can undo. Then come the
    penalties: repetition (transformers'
    ``RepetitionPenaltyLogitsProcessor``), frequency and presence (over generated tokens, as OpenAI defines them), and
    ``logit_bias``. Last, end tokens are masked before ``min_tokens``, unless a grammar allows nothing else.

    Args:
        logits: float32 ``(rows, vocabulary)``, contiguous.

    Returns:
        The rows that were changed.
    """
    penalised = [row for row, state in enumerate(states) if state.params.has_penalties]
    biased = [row for row, state in enumerate(states) if state.params.logit_bias]
    constrained = [row for row, state in enumerate(states) if state.matcher is not None]
    masked = [row for row, state in enumerate(states) if state.params.has_masks]
    must_end = mask_by_grammars(logits, constrained, states) if constrained else frozenset()
    too_short = [row for row, state in enumerate(states) if state.is_too_short and row not in must_end]
    for row in masked:
        _mask(logits[row], states[row])
    if penalised:
        _penalise(logits, penalised, states)
    if biased:
        _add_biases(logits, biased, states)
    if too_short:
        _mask_ends(logits, too_short, states, eos_token_ids)
    return sorted({*constrained, *masked, *penalised, *biased, *too_short})


def _mask(logits: torch.Tensor, state: SamplingState) -> None:
    """Mask the tokens that are not in ``allowed_token_ids``, and those that complete one of ``bad_words``.

    Args:
        logits: of one row, ``(vocabulary,)``; they are changed.
    """
    if state.allowed is not None:
        allowed = _tensor(state.allowed, logits)
        kept = logits[allowed]
        logits.fill_(-torch.inf)
        logits[allowed] = kept
    if forbidden := state.forbidden:
        logits[forbidden] = -torch.inf


def _penalise(logits: torch.Tensor, rows: list[int], states: Sequence[SamplingState]) -> None:
    params = [states[row].params for row in rows]
    used = [states[row].counts for row in rows]
    sizes = [len(counts.ids) for counts in used]
    where = _flat_indices(logits, rows, [counts.ids for counts in used])
    counts = _tensor(np.concatenate([counts.counts for counts in used]), logits)

    def of_each(values: list[float]) -> torch.Tensor:
        return _tensor(np.repeat(np.array(values, np.float32), sizes), logits)

    flat = logits.view(-1)
    values = flat[where]
    repetition = of_each([param.repetition_penalty for param in params])
    values = torch.where(values < 0, values * repetition, values / repetition)
    values -= counts * of_each([param.frequency_penalty for param in params])
    values -= (counts > 0) * of_each([param.presence_penalty for param in params])
    flat[where] = values


def _add_biases(logits: torch.Tensor, rows: list[int], states: Sequence[SamplingState]) -> None:
    token_ids, values = zip(*[states[row].biases for row in rows], strict=True)
    logits.view(-1)[_flat_indices(logits, rows, token_ids)] += _tensor(np.concatenate(values), logits)


def _mask_ends(
    logits: torch.Tensor, rows: list[int], states: Sequence[SamplingState], eos_token_ids: frozenset[int]
) -> None:
    ends = [
        np.array([end for end in eos_token_ids | states[row].params.stop_token_ids if end < logits.shape[-1]], np.int64)
        for row in rows
    ]
    logits.view(-1)[_flat_indices(logits, rows, ends)] = -torch.inf


def _flat_indices(logits: torch.Tensor, rows: list[int], token_ids: Sequence[npt.NDArray[np.int64]]) -> torch.Tensor:
    """Return the indices of each row's tokens in the flattened logits."""
    starts = np.repeat(np.array(rows) * logits.shape[-1], [len(ids) for ids in token_ids])
    return _tensor(starts + np.concatenate(token_ids), logits)


def _tensor(values: npt.NDArray[np.generic], like: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(values).to(like.device)
