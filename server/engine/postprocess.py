"""Conversion of a step's output to the next event of each sequence."""

from __future__ import annotations

from collections.abc import Sequence as AbstractSequence
from typing import TYPE_CHECKING

from server.engine.embedding_events import embedding_events
from server.engine.interface import EngineError, GenerationFailedError, TokenEvent
from server.engine.kv.block_manager import BlockManager
from server.engine.sampling.logprobs import collect_prompt_logprobs
from server.engine.scheduler import Scheduled
from server.engine.sequence import Sequence
from server.engine.token_events import events_of_tokens, token_events
from server.model.step import StepOutput

if TYPE_CHECKING:
    from server.kernels.native.library import Kernels

SequenceEvent = tuple[Sequence, TokenEvent | EngineError]


def postprocess(
    step: AbstractSequence[Scheduled],
    output: StepOutput,
    blocks: BlockManager,
    eos_token_ids: frozenset[int],
    kernels: Kernels | None = None,
) -> list[SequenceEvent]:
    """Record the step's tokens as cached, and give each sequence that reached its end its next token or embedding.

    Args:
        step: its sequences are as they were before the step.
        output: the output of the step; logits are changed.
        blocks: the blocks of the KV cache.
        eos_token_ids: tokens that end a sequence.
        kernels: choose the tokens; torch does without them.

    Returns:
        At most one event of each sequence. An event with a finish reason is its last, and so is an error.
    """
    items: list[SequenceEvent] = [*embedding_events(step, output)]
    ready, rows = [], []  # sequences whose next token can be sampled, and the rows of their logits
    end = 0
    for item in step:
        sequence = item.sequence
        end += item.num_logits
        try:
            if sequence.wants_prompt_logits:
                collect_prompt_logprobs(sequence, output.logits[end - item.num_logits : end])
        except GenerationFailedError as error:
            items.append((sequence, error))
            continue
        if item.reaches_end and sequence.pooler is None:
            ready.append(sequence)
            rows.append(end - 1)
        sequence.num_cached += item.num_tokens
        blocks.cache_full_blocks(sequence.blocks, sequence.prefix_cache_ids, sequence.num_cached)
    if output.tokens is not None:
        items += zip(ready, events_of_tokens(ready, output.tokens, eos_token_ids), strict=True)
        return items
    logits = output.scores if len(rows) == output.num_logits else output.logits[rows]
    events = token_events(ready, logits, eos_token_ids, kernels)
    items += zip(ready, events, strict=True)
    return items
