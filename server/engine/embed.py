"""A step's hidden states to the vectors of the prompts that end in it."""

from __future__ import annotations

from collections.abc import Sequence as AbstractSequence
from itertools import accumulate

from server.model.step import StepOutput

from .request import FinishReason, GenerationFailedError, TokenEvent
from .scheduler import Scheduled
from .sequence import Sequence


def embed(
    step: AbstractSequence[Scheduled], output: StepOutput
) -> list[tuple[Sequence, TokenEvent | GenerationFailedError]]:
    """Pool what prompts without continuation have computed; the only event of each whose last token is among it.

    Args:
        step: whose sequences are as they were before it.
    """
    events: list[tuple[Sequence, TokenEvent | GenerationFailedError]] = []
    for item, end in zip(step, accumulate(item.num_hidden for item in step), strict=True):
        sequence, pool = item.sequence, item.sequence.pool
        if pool is None:
            continue
        if sequence.num_cached == 0:
            pool.restart()
        if item.num_hidden and output.hidden is not None:
            pool.add(output.hidden[end - item.num_hidden : end])
        if item.reaches_end:
            try:
                vector = pool.result()
            except GenerationFailedError as error:
                events.append((sequence, error))
                continue
            usage = sequence.expert_usage
            events.append((sequence, TokenEvent("", 0, FinishReason.STOP, expert_usage=usage, embedding=vector)))
    return events
