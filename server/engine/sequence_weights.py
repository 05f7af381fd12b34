"""Protocol of the weights that sequences run with beside the base model's."""

from __future__ import annotations

from typing import Protocol

from server.engine.interface import ChoiceByToken, ExpertUsage, Timeline
from server.model.chunk_weights import ChosenAdapters, ChunkWeights


class SequenceWeights(Protocol):
    """An expert variant, adapters, or both, as the names in a request stand for them.

    The engine calls ``begin`` when it accepts a sequence and ``end`` when that ends, so that nothing is unloaded while
    a sequence uses it. In between, the sequence is in memory from ``acquire`` to ``release``, perhaps several times.
    """

    @property
    def cache_salt(self) -> bytes:
        """Part of every hash of the sequence's prefixes: prefixes of other weights never match.

        Valid from ``begin`` to ``end``.
        """

    @property
    def versions(self) -> tuple[str, ...]:
        """Names of the variant and adapters as they were loaded; valid as ``cache_salt`` is."""

    def begin(self) -> None:
        """Count a sequence.

        Raises:
            RequestRefusedError: the weights were unloaded.
        """

    def end(self) -> None:
        """End the use that ``begin`` counted."""

    def acquire(self) -> bool:
        """Keep the weights in memory until ``release``; return False, and keep nothing, while they are being loaded.

        Never blocks. The first call starts the load.

        Raises:
            GenerationFailedError: they can't be loaded.
        """

    def release(self) -> None:
        """Let the weights be evicted."""

    def note_tokens(self, num_tokens: int, routed: ChosenAdapters | None) -> None:
        """Count tokens that were computed with the weights.

        Args:
            routed: what a router of adapters chose for them; None without one.
        """

    def note_request(self, usage: ExpertUsage, timeline: Timeline, num_generated: int) -> None:
        """Count a sequence that has ended, before ``end``.

        Args:
            usage: of its experts.
            num_generated: its tokens.
        """

    @property
    def by_token(self) -> ChoiceByToken | None:
        """The choice of adapters for each token; None if there is none. Valid as ``cache_salt`` is."""

    @property
    def chunk_weights(self) -> ChunkWeights:
        """The weights for the model; valid from ``acquire`` to ``release``."""
