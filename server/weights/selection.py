"""The weights of sequences: an expert variant, adapters, or both."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import replace

from expert_store import CheckpointError
from server.engine.interface import (
    AccessRefusedError,
    ChoiceByToken,
    ExpertUsage,
    RequestRefusedError,
    Timeline,
)
from server.engine.sequence_weights import SequenceWeights
from server.model.checkpoint.expert_restriction import ExpertRestriction
from server.model.chunk_weights import ChosenAdapters, ChunkWeights
from server.model.expert_variant import ExpertVariant
from server.weights.variant_registry import VariantRegistry, VariantVersion


class _ExpertSelection(ABC):
    """Base of selections of experts alone, which are paged as a step needs them; nothing is acquired."""

    @property
    @abstractmethod
    def variant(self) -> ExpertVariant:
        """The experts that the request runs with."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:  # noqa: B027  no duty of subclasses
        """Do nothing: the store's leases hold experts for as long as a step needs them."""

    def note_tokens(self, num_tokens: int, routed: ChosenAdapters | None) -> None:  # noqa: B027  no duty of subclasses
        """Do nothing: the store counts the tokens of experts."""

    def note_request(self, usage: ExpertUsage, timeline: Timeline, num_generated: int) -> None:  # noqa: B027  as above
        """Do nothing: experts of the base model have no name."""

    @property
    def by_token(self) -> ChoiceByToken | None:
        return None

    @property
    def chunk_weights(self) -> ChunkWeights:
        return ChunkWeights(variant=self.variant)


class VariantSelection(_ExpertSelection):
    """The ``SequenceWeights`` of a request with an expert variant.

    The version is that when its first sequence begins. Experts come to memory as tokens are routed to them, so there
    is nothing to acquire.
    """

    def __init__(self, name: str, registry: VariantRegistry):
        self._name, self._registry = name, registry
        self._version: VariantVersion | None = None
        self._num_sequences = 0
        self._lock = threading.Lock()  # guards the two fields above

    @property
    def cache_salt(self) -> bytes:
        return self._current.version.encode()

    @property
    def versions(self) -> tuple[str, ...]:
        return (self._current.version,)

    def begin(self) -> None:
        with self._lock:
            if self._version is None or not self._num_sequences:
                self._version = self._registry.begin(self._name)
            else:
                self._registry.begin_again(self._version)
            self._num_sequences += 1

    def end(self) -> None:
        with self._lock:
            self._num_sequences -= 1
        self._registry.end(self._current)

    def note_request(self, usage: ExpertUsage, timeline: Timeline, num_generated: int) -> None:
        self._registry.note_request(self._name, usage, timeline, num_generated)

    @property
    def variant(self) -> ExpertVariant:
        """The variant, as it was when the first sequence began."""
        return self._current.files.variant

    @property
    def _current(self) -> VariantVersion:
        assert self._version is not None
        return self._version


class RestrictedSelection(_ExpertSelection):
    """The ``SequenceWeights`` of a request whose policy forbids experts.

    Args:
        selected: the variant that the request chose; None for the base model.
    """

    def __init__(self, restriction: ExpertRestriction, selected: VariantSelection | None):
        self._restriction, self._selected = restriction, selected
        self._variant: ExpertVariant | None = None if selected else restriction.apply(None)

    @property
    def cache_salt(self) -> bytes:
        return self.variant.version.encode()

    @property
    def versions(self) -> tuple[str, ...]:
        return () if self._selected is None else self._selected.versions

    def begin(self) -> None:
        if self._selected is None:
            return
        self._selected.begin()
        try:
            self._variant = restricted(self._restriction, self._selected.variant)
        except AccessRefusedError:
            self._selected.end()
            raise

    def end(self) -> None:
        if self._selected is not None:
            self._selected.end()

    def note_request(self, usage: ExpertUsage, timeline: Timeline, num_generated: int) -> None:
        if self._selected is not None:
            self._selected.note_request(usage, timeline, num_generated)

    @property
    def variant(self) -> ExpertVariant:
        """The model or the variant without the forbidden experts."""
        assert self._variant is not None
        return self._variant


def restricted(restriction: ExpertRestriction, variant: ExpertVariant) -> ExpertVariant:
    """Return a variant without the experts that a policy forbids.

    Raises:
        AccessRefusedError: it can't run without them.
    """
    try:
        return restriction.apply(variant)
    except CheckpointError as error:
        message = f"the variant {variant.name!r} can't run without the experts that this key may not use: {error}"
        raise AccessRefusedError(message, "model", "experts") from error


class CombinedSelection:
    """The ``SequenceWeights`` of a request with an expert variant and adapters.

    Args:
        changed_routers: returns the layers of experts whose routers the adapters change, once they have begun.
    """

    def __init__(
        self,
        variant: VariantSelection | RestrictedSelection,
        adapters: SequenceWeights,
        changed_routers: Callable[[], Iterable[int]] = tuple,
    ):
        self._variant, self._adapters, self._changed_routers = variant, adapters, changed_routers

    @property
    def cache_salt(self) -> bytes:
        return self._variant.cache_salt + b"+" + self._adapters.cache_salt

    @property
    def versions(self) -> tuple[str, ...]:
        return self._variant.versions + self._adapters.versions

    def begin(self) -> None:
        self._variant.begin()
        try:
            self._adapters.begin()
        except Exception:
            self._variant.end()
            raise
        layer = next(filter(self._variant.variant.removes_experts, self._changed_routers()), None)
        if layer is not None:
            self.end()
            raise RequestRefusedError(
                f"an adapter that changes the router of layer {layer} can't be used without some of its experts, whose "
                "rows the router lacks; use another adapter or model",
                "adapters",
            )

    def end(self) -> None:
        self._variant.end()
        self._adapters.end()

    def acquire(self) -> bool:
        return self._adapters.acquire()

    def release(self) -> None:
        self._adapters.release()

    def note_request(self, usage: ExpertUsage, timeline: Timeline, num_generated: int) -> None:
        self._variant.note_request(usage, timeline, num_generated)
        self._adapters.note_request(usage, timeline, num_generated)

    def note_tokens(self, num_tokens: int, routed: ChosenAdapters | None) -> None:
        self._adapters.note_tokens(num_tokens, routed)

    @property
    def by_token(self) -> ChoiceByToken | None:
        return self._adapters.by_token

    @property
    def chunk_weights(self) -> ChunkWeights:
        return replace(self._adapters.chunk_weights, variant=self._variant.variant)
