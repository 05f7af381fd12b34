"""Bytes in memory as a source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from expert_store.errors import ShortReadError
from expert_store.sources.base import Bytes, Piece, SourceIdentity


@dataclass(frozen=True)
class MemorySource:
    """Some bytes with the name of where they come from; see ``Source``, and open as it is."""

    name: str
    content: bytes = field(repr=False)

    @property
    def short_name(self) -> str:
        """The last part of the name."""
        return self.name.rpartition("/")[2]

    def open(self, *, is_direct: bool = True) -> MemorySource:
        """Return the source itself."""
        del is_direct
        return self

    @property
    def identity(self) -> SourceIdentity:
        """Name and size."""
        return SourceIdentity("memory", (self.name,), len(self.content))

    def has_changed(self) -> bool:
        """Return False."""
        return False

    def refuse_changed(self) -> None:
        """Do nothing."""

    def read(self, pieces: Sequence[Piece], scratch: Bytes | None = None) -> None:
        """Copy some pieces."""
        del scratch
        for piece in pieces:
            if piece.end > len(self.content):
                raise ShortReadError(self.short_name, f"ends at byte {len(self.content)}, inside the weights")
            piece.target[:] = np.frombuffer(self.content, np.uint8, len(piece.target), piece.offset)

    def close(self) -> None:
        """Do nothing."""
