"""Runs of pieces that lie close to each other in a source, to be read together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from expert_store.sources.base import Piece

MAX_GAP_BYTES = 64 << 10  # reading that many unused bytes costs less than another call or request


def runs_of(pieces: Sequence[Piece], max_gap_bytes: int = MAX_GAP_BYTES) -> Iterator[list[Piece]]:
    """Group pieces by their places; those without bytes are left out."""
    run: list[Piece] = []
    end = 0
    for piece in sorted((piece for piece in pieces if len(piece.target)), key=lambda piece: piece.offset):
        if run and piece.offset - end > max_gap_bytes:
            yield run
            run, end = [], 0
        run.append(piece)
        end = max(end, piece.end)
    if run:
        yield run
