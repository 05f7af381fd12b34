"""Steps of two sequences of fixed tokens."""

from __future__ import annotations

from server.model.step import SequenceChunk

TABLES = ([3, 1, 6], [5, 4, 2])  # blocks of the KV cache of each sequence


def chunks_of_two(first: int, length: int, num_prompt: int, num_groups: int) -> list[SequenceChunk]:
    """Return the chunks of a step.

    Args:
        first: position of the chunks' first tokens.
        length: of each chunk, in tokens.
        num_prompt: tokens of each sequence that are its prompt.
        num_groups: of the KV cache.
    """
    return [
        SequenceChunk(
            [(11 * row + 7 * (first + i)) % 100 + 3 for i in range(length)],
            first,
            [table] * num_groups,
            slot=row,
            num_prompt=num_prompt,
        )
        for row, table in enumerate(TABLES)
    ]
