"""What the routes are given to work with."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any
from weakref import WeakSet

from server.api.errors import DrainingError, ModelNotFoundError, ServiceUnavailableError
from server.api.expert_feed import ExpertFeed
from server.api.grammars import Grammars
from server.api.hosts import Hosts
from server.api.keys import Keys
from server.api.rates import Turnstile
from server.api.room import Room
from server.api.tracing import Tracer
from server.api.unknown_fields import UnknownFields
from server.api.validation import quote
from server.engine.request import ExpertAdministration, GenerationEngine, SamplingDefaults, TextCodec

MAX_BODIES_BYTES = 64 << 20  # of all requests that have no answer yet, or none that has begun
BODIES_REFUSAL = "The server is busy with too many large bodies: try again later."
MAX_ALL_PROMPT_LOGPROBS = 1 << 20  # of all requests that run or wait; each takes some hundred bytes until it is sent
LOGPROBS_REFUSAL = "The server is gathering too many logprobs of prompts: try again later."


class ServiceState(StrEnum):
    """Whether requests are answered, and why not."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    DEAD = "dead"


@dataclass
class LoadedModel:
    """A model that answers requests."""

    name: str
    engine: GenerationEngine
    codec: TextCodec
    defaults: SamplingDefaults = field(default_factory=SamplingDefaults)
    experts: ExpertAdministration | None = None
    keeps_stalls: bool = False  # whether the engine is to tell of each request's longest waits for experts
    created: int = field(default_factory=lambda: int(time.time()))  # seconds since 1970
    grammars: Grammars = field(init=False)
    logprobs_room: Room = field(default_factory=lambda: Room(MAX_ALL_PROMPT_LOGPROBS, LOGPROBS_REFUSAL))

    def __post_init__(self) -> None:
        self.grammars = Grammars(self.codec)


def no_metrics() -> bytes:
    return b""


@dataclass
class Service:
    """The state of the server as the routes see it: ``model`` is None until it is loaded."""

    version: str
    model: LoadedModel | None = None
    is_draining: bool = False
    keys: Keys = field(default_factory=Keys)
    hosts: Hosts = field(default_factory=Hosts)
    turnstile: Turnstile = field(default_factory=Turnstile)
    body_room: Room = field(default_factory=lambda: Room(MAX_BODIES_BYTES, BODIES_REFUSAL))
    large_bodies: asyncio.Lock = field(default_factory=asyncio.Lock)  # held while one is parsed
    # Of requests whose answer ends with the server, or earlier; draining waits for all others.
    endless: WeakSet[asyncio.Task[Any]] = field(default_factory=WeakSet)
    metrics: Callable[[], bytes] = no_metrics  # Prometheus' text format; called off the event loop
    unknown_fields: UnknownFields = field(default_factory=UnknownFields)
    expert_feed: ExpertFeed = field(default_factory=ExpertFeed)
    logs_prompts: bool = False
    tracer: Tracer | None = None

    @property
    def state(self) -> ServiceState:
        if self.is_draining:
            return ServiceState.DRAINING
        if self.model is not None and not self.model.engine.is_alive:
            return ServiceState.DEAD
        return ServiceState.LOADING if self.model is None else ServiceState.READY

    @property
    def is_ready(self) -> bool:
        return self.state is ServiceState.READY

    def loaded_model(self, name: str | None) -> LoadedModel:
        """The model of that name, or the only one if no name is given.

        Raises:
            ServiceUnavailableError: it is still being loaded.
            ModelNotFoundError: there is no such model.

        """
        if self.model is None:
            raise ServiceUnavailableError("The model is still being loaded: try again when GET /ready answers 200.")
        if name is not None and name != self.model.name:
            raise ModelNotFoundError(
                f"The model {quote(name)} does not exist: this server serves {quote(self.model.name)}.", "model"
            )
        return self.model

    def accepting_model(self, name: str | None) -> LoadedModel:
        """What answers a request that names a model, if it takes new requests; no route looks at the name itself.

        Raises:
            ServiceUnavailableError: it is being loaded or drained, or its engine died.
            ModelNotFoundError: there is no such model.

        """
        if self.state is ServiceState.DRAINING:
            raise DrainingError("The server is shutting down: send the request to another.")
        model = self.loaded_model(name)
        if self.state is ServiceState.DEAD:
            raise ServiceUnavailableError("The engine has stopped: see the log of the server and restart it.")
        return model
