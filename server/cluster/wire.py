"""Data that goes between the ingress and the replicas of the engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from server.cluster.scoring import Costs, ReplicaState
from server.cluster.signatures import RoutedRequest, Signature
from server.engine.interface import (
    AdapterCandidate,
    ChoiceByToken,
    EngineError,
    EngineUnavailableError,
    ExpertHealth,
    GenerationRequest,
    ModelCard,
    SamplingDefaults,
    Timeline,
    TokenEvent,
)

if TYPE_CHECKING:
    from server.engine.text.codec import CodecParts  # its module imports torch, which a router does without


@dataclass(frozen=True)
class Submission:
    """A request on its way to a replica.

    Args:
        sender: the ingress that it comes from. A replica that does not hear of an ingress ends its requests.
        routed: what the router chooses a replica by.
        number: of the submission among all of its sender.
    """

    sender: str
    request: GenerationRequest
    routed: RoutedRequest
    number: int


@dataclass(frozen=True)
class SharedCall:
    """A call for the events of all requests of one ingress at one replica, together on one stream."""

    sender: str
    replica: str


@dataclass(frozen=True)
class StreamEnd:
    """Facts that a replica tells with the last item of a stream.

    Args:
        times: the request's timeline, in seconds since it was submitted.
        state: of the replica now; its blocks are left out.
        signature: experts of the generated tokens; None without any.
    """

    times: Timeline
    state: ReplicaState
    signature: Signature | None = None


@dataclass(frozen=True)
class Answer:
    """An item of the stream that answers a request. The first one says that the engine has taken the request, too.

    Args:
        replica: the replica that answers.
        start: events of the request before these.
        error: the error that ended the request.
        end: in the last item.
        held_seconds: of the first item: since the replica got the request.
    """

    replica: str
    events: Sequence[TokenEvent] = ()
    start: int = 0
    error: EngineError | None = None
    end: StreamEnd | None = None
    held_seconds: float = 0.0

    def __reduce__(self) -> tuple[Callable[..., Answer], tuple[Any, ...]]:
        events = [_packed(event) for event in self.events]
        return _answer, (self.replica, events, self.start, self.error, self.end, self.held_seconds)


@dataclass(frozen=True)
class Batch:
    """Events of a request on a stream that it shares with others.

    Args:
        number: of the request's submission.
        start: events of the request before these.
    """

    number: int
    start: int
    events: Sequence[TokenEvent]

    def __reduce__(self) -> tuple[Callable[..., Batch], tuple[Any, ...]]:
        return _batch, (self.number, self.start, [_packed(event) for event in self.events])


_OTHERS = attrgetter(
    *(each.name for each in fields(TokenEvent) if each.name not in {"text", "num_generated", "token_id"})
)
_NOTHING = _OTHERS(TokenEvent("", 0))  # as most events have it


def _packed(event: TokenEvent) -> Any:
    """Return an event in the form that is pickled: a tuple for one with nothing but a token and its text."""
    is_short = all(one is other for one, other in zip(_OTHERS(event), _NOTHING, strict=True))
    return (event.text, event.num_generated, event.token_id) if is_short else event


def _unpacked(packed: Any) -> TokenEvent:
    return TokenEvent(packed[0], packed[1], token_id=packed[2]) if isinstance(packed, tuple) else packed


def _answer(replica: str, events: Sequence[Any], *others: Any) -> Answer:
    return Answer(replica, [_unpacked(event) for event in events], *others)


def _batch(number: int, start: int, events: Sequence[Any]) -> Batch:
    return Batch(number, start, [_unpacked(event) for event in events])


@dataclass(frozen=True)
class ServedAdapter:
    """A registered adapter or mixture, as the names in requests need it.

    Args:
        by_token: the choice of a mixture's gate.
        reason_against_tokens: why a router can't choose it for each token.
    """

    name: str
    folder: Path
    by_token: ChoiceByToken | None = None
    reason_against_tokens: str | None = None


@dataclass(frozen=True)
class ServedWeights:
    """The weights beside the base model's that a replica serves.

    Args:
        changed_at: Unix time of the last change while it ran; 0 if they are those of its start.
        variants: names, and the folders that they were loaded from.
    """

    changed_at: float = 0.0
    adapters: Mapping[str, ServedAdapter] = field(default_factory=dict)
    candidates: Sequence[AdapterCandidate] = ()
    variants: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class WeightChange:
    """A call of ``load`` or ``unload`` of the adapters or the variants, for all replicas.

    Args:
        made_at: Unix time of the ingress.
        part: ``adapters``, ``adapters_on_request`` or ``variants``.
        arguments: the first one is the name of the weights.
    """

    id: str
    made_at: float
    part: str
    method: str
    arguments: tuple[Any, ...]
    named: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ReplicaReport:
    """State of a replica, which it tells when it is asked."""

    replica: str
    state: ReplicaState
    weights: ServedWeights
    health: ExpertHealth
    is_alive: bool
    costs: Costs
    host_bytes: int = 0
    device_bytes: int = 0


@dataclass(frozen=True)
class ModelFacts:
    """Facts about the model that are the same for all replicas, from which the ingress makes its own model.

    Args:
        card: without the bytes in memory, which each replica reports.
        codec: what text is turned into tokens with.
        block_size: tokens of a block of the KV cache.
    """

    name: str
    max_model_len: int
    is_encoder_decoder: bool
    is_encoder: bool
    labels: tuple[str, ...]
    hidden_size: int
    defaults: SamplingDefaults
    card: ModelCard
    codec: CodecParts
    block_size: int
    loads_adapters: bool
    loads_adapters_on_request: bool


@dataclass(frozen=True)
class Outcome:
    """The value that a call to a replica returned, or the error that it raised."""

    replica: str
    value: Any = None
    error: Exception | None = None


def outcome_of(result: Any) -> Outcome:
    """Return the outcome of a call to a replica, which may be what it raised."""
    if isinstance(result, Outcome):
        return result
    return Outcome("", error=EngineUnavailableError(f"a replica did not answer: {result}"))


@dataclass(frozen=True)
class Holdings:
    """Weights of a replica, its pinned and its hottest experts, which a new one takes over."""

    weights: ServedWeights
    pinned: Sequence[tuple[int, int]] = ()
    hottest: Sequence[tuple[int, int]] = ()
