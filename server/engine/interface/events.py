"""Events of a request, token by token."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import overload

import numpy as np
import numpy.typing as npt

from server.engine.interface.adapter_choice import ChoiceByToken
from server.model.step import RoutedExperts


class FinishReason(StrEnum):
    """Reason why a sequence ended, as OpenAI names it."""

    STOP = "stop"
    LENGTH = "length"


class TopLogprobs(Sequence[tuple[int, float]]):
    """The most likely tokens and their logprobs, most likely first: 12 bytes each, where tuples take 110."""

    __slots__ = ("_logprobs", "_token_ids")

    def __init__(self, token_ids: Iterable[int], logprobs: Iterable[float]):
        self._token_ids, self._logprobs = array("i", token_ids), array("d", logprobs)

    def __len__(self) -> int:
        return len(self._token_ids)

    def __iter__(self) -> Iterator[tuple[int, float]]:
        return zip(self._token_ids, self._logprobs, strict=True)

    @overload
    def __getitem__(self, index: int) -> tuple[int, float]: ...
    @overload
    def __getitem__(self, index: slice) -> TopLogprobs: ...
    def __getitem__(self, index: int | slice) -> tuple[int, float] | TopLogprobs:
        if isinstance(index, slice):
            return TopLogprobs(self._token_ids[index], self._logprobs[index])
        return self._token_ids[index], self._logprobs[index]

    def __eq__(self, other: object) -> bool:
        return tuple(self) == tuple(other) if isinstance(other, Sequence) else NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return f"TopLogprobs{tuple(self)}"


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log probability of a token in the model's own distribution, before penalties and temperature."""

    token_id: int
    logprob: float
    top: Sequence[tuple[int, float]] = ()  # the most likely tokens and their logprobs, most likely first
    text_offset: int = 0  # characters of the completion before the token; 0 for a token of the prompt


@dataclass(frozen=True)
class ExpertUsage:
    """Cost of the experts that a request's own tokens were routed to, over all steps."""

    num_requests: int = 0  # expert look-ups, each expert once a layer and step
    num_misses: int = 0  # look-ups of experts that were in no tier of memory
    bytes_read: int = 0  # bytes of the misses, and of used experts that were read ahead of their layer
    stall_seconds: float = 0.0  # waits in layers, including those for experts of other sequences in the batch
    num_dropped: int = 0  # tokens that no expert took, once for each layer
    remote_bytes: int = 0  # of the bytes read, those that were on no disk
    num_passes: int = 0  # passes layer by layer over parts of its prompt, which it may have shared

    def __add__(self, other: ExpertUsage) -> ExpertUsage:
        return ExpertUsage(
            self.num_requests + other.num_requests,
            self.num_misses + other.num_misses,
            self.bytes_read + other.bytes_read,
            self.stall_seconds + other.stall_seconds,
            self.num_dropped + other.num_dropped,
            self.remote_bytes + other.remote_bytes,
            self.num_passes + other.num_passes,
        )

    def __sub__(self, other: ExpertUsage) -> ExpertUsage:
        return ExpertUsage(
            self.num_requests - other.num_requests,
            self.num_misses - other.num_misses,
            self.bytes_read - other.bytes_read,
            self.stall_seconds - other.stall_seconds,
            self.num_dropped - other.num_dropped,
            self.remote_bytes - other.remote_bytes,
            self.num_passes - other.num_passes,
        )


@dataclass(frozen=True, slots=True)
class AdapterShares:
    """Shares of the adapters that were chosen for tokens, since the last event.

    Args:
        choice: names all adapters to choose from.
        num_tokens: the sum of all shares.
        sums: by name, the sum over tokens of its mean factor over the layers.
    """

    choice: ChoiceByToken
    num_tokens: int
    sums: Mapping[str, float]

    @property
    def nbytes(self) -> int:
        return SHARE_BYTES * len(self.sums)


SHARE_BYTES = 80  # of a name and its share
LOGPROBS_BYTES, TOP_BYTES = 240, 12  # bytes of a ``TokenLogprobs``, and of each token in ``top``
EVENT_BYTES = 480  # bytes of a ``TokenEvent`` beside its text, logprobs and experts
TEXT_BYTES = 64  # bytes of the text of most tokens, as they are counted


def logprobs_bytes(num_tokens: int, num_top: int) -> int:
    """Return the bytes that the logprobs of so many tokens take, each with its ``num_top`` most likely ones."""
    return num_tokens * (LOGPROBS_BYTES + num_top * TOP_BYTES)


@dataclass(slots=True)
class TokenEvent:
    """One step of a stream: new text, which is empty while a character or stop string is incomplete.

    Nobody changes an event. It is not frozen because each token has one, and a frozen one takes far longer to make.
    """

    text: str
    num_generated: int  # tokens so far, including one that stops the sequence
    finish_reason: FinishReason | None = None
    logprobs: tuple[TokenLogprobs, ...] = ()  # the new tokens, even if their text is held back
    prompt_logprobs: tuple[TokenLogprobs, ...] | None = None  # all prompt tokens but the first, in the first event
    stop: str | None = None  # the stop string that ended the text
    experts: RoutedExperts | None = None  # experts of the token before the new one, if requested
    expert_usage: ExpertUsage | None = None  # in the last event
    embedding: npt.NDArray[np.float32] | None = None  # (hidden,) or (labels,), in the only event of a pooled prompt
    token_id: int | None = None  # the new token; None if there is none
    adapters: Mapping[str, float] | None = None  # their factors for the token before the new one, if requested
    adapter_shares: AdapterShares | None = None  # in the tokens since the last event, if adapters are chosen by token
    lacks_text: bool = False  # until the event is published

    @property
    def nbytes(self) -> int:
        """Bytes that the event takes in memory, beside logprobs of the prompt."""
        nbytes = EVENT_BYTES + 4 * len(self.text)
        for each in self.logprobs:
            nbytes += logprobs_bytes(1, len(each.top))
        if self.experts is not None:
            nbytes += self.experts.nbytes
        if self.adapter_shares is not None:
            nbytes += self.adapter_shares.nbytes
        return nbytes
