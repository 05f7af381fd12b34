"""Conversion of a step's hidden states, or logits of labels, to the vectors of the prompts that end in it."""

from __future__ import annotations

from collections.abc import Sequence as AbstractSequence
from itertools import accumulate

from server.engine.interface import FinishReason, GenerationFailedError, TokenEvent
from server.engine.pooler import Vector, finite
from server.engine.scheduler import Scheduled
from server.engine.sequence import Sequence
from server.model.step import StepOutput


def embedding_events(
    step: AbstractSequence[Scheduled], output: StepOutput
) -> list[tuple[Sequence, TokenEvent | GenerationFailedError]]:
    """Pool the hidden states of prompts that are not continued.

    Args:
        step: its sequences are as they were before the step.

    Returns:
        The only event of each such prompt whose last token is in the step.
    """
    events: list[tuple[Sequence, TokenEvent | GenerationFailedError]] = []
    if not [item for item in step if item.sequence.pooler is not None]:  # as in most steps
        return events
    ends = accumulate(item.num_hidden for item in step)
    for index, (item, end) in enumerate(zip(step, ends, strict=True)):
        sequence, pooler = item.sequence, item.sequence.pooler
        if pooler is None:
            continue
        if sequence.num_cached == 0:
            pooler.restart()
        if item.num_hidden and output.hidden is not None:
            pooler.add(output.hidden[end - item.num_hidden : end])
        if item.reaches_end:
            try:
                vector = _labels(output, index) if pooler.pooling == "classify" else pooler.result()
            except GenerationFailedError as error:
                events.append((sequence, error))
                continue
            usage = sequence.expert_usage
            events.append((sequence, TokenEvent("", 0, FinishReason.STOP, expert_usage=usage, embedding=vector)))
    return events


def _labels(output: StepOutput, index: int) -> Vector:
    """Return the logits of the labels of a chunk of the step."""
    assert output.label_logits is not None
    return finite(output.label_logits[index].numpy())
