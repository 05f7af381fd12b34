"""The state of the server that routes work with: its model, limits and keys."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal
from weakref import WeakSet

from server.api.core.access.access_policies import AccessPolicies, AccessRefusals
from server.api.core.access.api_keys import Keys
from server.api.core.access.audit import audit
from server.api.core.access.caller import current_caller
from server.api.core.access.host_rules import HostRules
from server.api.core.access.rate_limiter import RateLimiter
from server.api.core.bodies.ignored_names import IgnoredNames
from server.api.core.choice.adapter_choice import AdapterChoice
from server.api.core.choice.auto_choice import AUTO, RoutingOptions
from server.api.core.errors.api_errors import (
    DrainingError,
    InvalidRequestError,
    ModelNotFoundError,
    ServiceUnavailableError,
)
from server.api.core.errors.validation import quote
from server.api.core.replies.response_store import ResponseStore
from server.api.core.requests.adapter_loads import AdapterLoads
from server.api.core.requests.loaded_model import LoadedModel
from server.api.core.service.expert_sampler import ExpertSampler
from server.api.core.service.response_counts import ResponseCounts
from server.api.core.service.tracer import Tracer
from server.engine.interface import (
    NO_LABELS,
    NO_TEXT,
    AccessPolicy,
    AccessReason,
    AccessRefusedError,
    ExpertHealth,
    JsonObject,
    RequestMemory,
    RequestRefusedError,
    RequiredAdapterError,
    UnknownAdapterError,
)
from server.setting_values import ModelAlias

Task = Literal["generate", "embed", "classify"]  # what a request wants of a model
MAX_LISTED = 10  # names in an error
UNKNOWN_FIELD = "Ignoring the unknown field %s of a request body."
NO_CANDIDATES = (
    "'model' is 'auto', but no adapter can be chosen: load one with 'examples' or a 'description', or name a model."
)
UNENFORCED = "Not enforcing %s: no grammar can."
IGNORED_TOOL = "Leaving out tools of the type %s: this server has functions only."


class ServiceState(StrEnum):
    """The state of the server. It accepts requests in READY, and in FAILING and FILES_CHANGED as far as it can."""

    LOADING = "loading"
    READY = "ready"
    FILES_CHANGED = "files_changed"  # the checkpoint was written to; what has to be read from it fails
    FAILING = "failing"  # experts can't be read, because a thread has died or a read does not return
    DRAINING = "draining"
    DEAD = "dead"

    @property
    def has_ended(self) -> bool:
        return self in {ServiceState.DRAINING, ServiceState.DEAD}

    @property
    def needs_restart(self) -> bool:
        return self in {ServiceState.FAILING, ServiceState.DEAD}


def no_metrics(*, hides_names: bool = False) -> bytes:  # noqa: ARG001
    return b""


def no_history(_: float) -> JsonObject:
    return {"object": "history", "interval_seconds": None, "times": [], "series": {}}


EXPERT_STATES: Mapping[ExpertHealth, ServiceState] = {
    "ok": ServiceState.READY,
    "files_changed": ServiceState.FILES_CHANGED,
    "failing": ServiceState.FAILING,
}


@dataclass
class Service:
    """The state of the server as routes see it; ``model`` is None until it is loaded."""

    version: str
    model: LoadedModel | None = None
    aliases: Sequence[ModelAlias] = ()
    is_draining: bool = False
    keys: Keys = field(default_factory=Keys)
    response_store: ResponseStore | None = None
    policies: AccessPolicies = field(default_factory=AccessPolicies)
    access_refusals: AccessRefusals = field(default_factory=AccessRefusals)
    host_rules: HostRules = field(default_factory=HostRules)
    rate_limiter: RateLimiter = field(default_factory=RateLimiter)
    memory_without_model: RequestMemory = field(default_factory=RequestMemory)  # memory of requests until it is loaded
    large_bodies: asyncio.Lock = field(default_factory=asyncio.Lock)  # held while one is parsed
    # Tasks of requests that last until the server stops, such as expert streams; draining does not wait for them.
    endless: WeakSet[asyncio.Task[Any]] = field(default_factory=WeakSet)
    # In Prometheus' text format; called off the event loop, with ``hides_names=True`` for callers who may not see them.
    metrics: Callable[..., bytes] = no_metrics
    history: Callable[[float], JsonObject] = no_history  # points later than a Unix time; called off the event loop
    responses: ResponseCounts = field(default_factory=ResponseCounts)
    unknown_fields: IgnoredNames = field(default_factory=lambda: IgnoredNames(UNKNOWN_FIELD))
    ignored_tools: IgnoredNames = field(default_factory=lambda: IgnoredNames(IGNORED_TOOL))
    unenforced: IgnoredNames = field(default_factory=lambda: IgnoredNames(UNENFORCED))
    adapter_loads: AdapterLoads = field(default_factory=AdapterLoads)
    expert_sampler: ExpertSampler = field(default_factory=ExpertSampler)
    isolates_prefixes: bool = False  # requests share cached prefixes only with those of the same key
    logs_prompts: bool = False
    refuses_other_samplers: bool = False  # requests with samplers that the server does not have
    stream_keep_alive_seconds: float = 10.0  # silence after which a stream sends a comment; 0: it sends none
    tracer: Tracer | None = None

    @property
    def state(self) -> ServiceState:
        if self.is_draining:
            return ServiceState.DRAINING
        if self.model is not None and not self.model.engine.is_alive:
            return ServiceState.DEAD
        if self.model is None:
            return ServiceState.LOADING
        return EXPERT_STATES[self.model.expert_health()]

    @property
    def memory(self) -> RequestMemory:
        """The memory that requests hold."""
        return self.memory_without_model if self.model is None else self.model.memory

    @property
    def is_ready(self) -> bool:
        return self.state is ServiceState.READY

    @property
    def base_model(self) -> LoadedModel:
        """The model that the server was started with.

        Raises:
            ServiceUnavailableError: it is still loading.

        """
        if self.model is None:
            raise ServiceUnavailableError("The model is still loading: try again when GET /ready answers 200.")
        return self.model

    def model_names(self) -> list[str]:
        """Return the names that the caller may use: the model's, its aliases that are no patterns, other weights'.

        Raises:
            ServiceUnavailableError: the model is still loading.

        """
        aliases = [alias.name for alias in self.aliases if not alias.is_pattern]
        names = [self.base_model.name, *aliases, *self.base_model.other_names]
        return [name for name in dict.fromkeys(names) if self.find_model(name) is not None]

    def find_model(self, name: str | None) -> LoadedModel | None:
        """Return the model of that name or alias; None if there is none that the caller may use.

        Raises:
            ServiceUnavailableError: the model is still loading.

        """
        found, policy = self._find(name), current_caller().policy
        if found is None or policy is None or found.is_auto:  # what a router chooses is checked when it has chosen
            return found
        return found if policy.allows(found.name) else None

    def loaded_model(self, name: str | None) -> LoadedModel:
        """Return the model of that name or alias, or the base model if no name is given.

        Raises:
            ServiceUnavailableError: the model is still loading.
            ModelNotFoundError: there is no such model, or the caller may not use it.

        """
        model = self.find_model(name)
        if model is not None:
            return model
        hidden, policy = self._find(name), current_caller().policy
        if hidden is not None and policy is not None:
            self._note_refusal(policy, "model", hidden.name)
        served = self._listed_names()
        if name is None:
            raise ModelNotFoundError(f"Name a model in 'model': {served}.", "model")
        raise ModelNotFoundError(f"The model {quote(name)} does not exist: {served}.", "model")

    def _listed_names(self) -> str:
        """Return the names that the caller may use, as a phrase."""
        names = self.model_names()
        if not names:
            return "this key may use none"
        num_left = len(names) - MAX_LISTED
        others = f" and {num_left} more of GET /v1/models" if num_left > 0 else ""
        return f"this server serves {', '.join(map(quote, names[:MAX_LISTED]))}{others}"

    def _find(self, name: str | None) -> LoadedModel | None:
        model = self.base_model
        if name is not None and model.has_other(name):
            return model.named(name)
        return model if name is None or name == model.name or self._resolve(name) == model.name else None

    def _resolve(self, name: str) -> str:
        """Return the name of the model that an alias stands for; a plain alias precedes patterns."""
        by_precedence = sorted(self.aliases, key=lambda alias: alias.is_pattern)
        return next((alias.model for alias in by_precedence if alias.matches(name)), name)

    async def accepting_model(
        self,
        name: str | None,
        adapters: Sequence[AdapterChoice] = (),
        routing: RoutingOptions | None = None,
        *,
        task: Task = "generate",
    ) -> LoadedModel:
        """Return the model that answers a new request, with the weights that it asks for.

        Routes that generate text, embed or classify get their model only from here.

        Raises:
            ServiceUnavailableError: the model is loading, the server is draining, or the engine died.
            ModelNotFoundError: there is no such model.
            RequestRefusedError: there are no such adapters.
            RequiredAdapterError: an adapter of the caller's policy is not loaded.
            InvalidRequestError: a router is to choose an adapter, but there is none to choose.
            RequestRefusedError: the model is not one for the task.

        """
        if self.state is ServiceState.DRAINING:
            raise DrainingError("The server is shutting down: send the request to another server.")
        base = self.base_model
        await self._load_missing(name, adapters, routing)
        if name == AUTO and not base.has_candidates and self._resolve(name) != base.name != name:
            if routing is None or routing.by_token is None:
                raise InvalidRequestError(NO_CANDIDATES, "model")
            model = base.named(AUTO)
        else:
            model = self.loaded_model(name)
        if self.state is ServiceState.DEAD:
            raise ServiceUnavailableError("The engine has stopped: see the server's log, and restart the server.")
        if task == "generate" and model.engine.is_encoder:
            raise RequestRefusedError(NO_TEXT, "model")
        if task == "classify" and not model.engine.labels:
            raise RequestRefusedError(NO_LABELS, "model")
        policy = current_caller().policy
        chosen = [(choice.name, choice.weight) for choice in adapters]
        if policy is not None:
            self._check_adapters(policy, [each for each, _ in chosen])
            self._check_adapters(policy, (routing and routing.adapters) or (), "routing.adapters")
        try:
            selected = model.selecting(chosen)
        except (AccessRefusedError, RequiredAdapterError) as error:
            if policy is not None:
                self._note_refusal(policy, error.reason, model.name, str(error))
            raise
        return model if model.is_auto else selected

    async def load_missing(self, name: str | None) -> None:
        """Load the adapter that a request names as its model, if adapters are loaded on request.

        Raises:
            ServiceUnavailableError: the model is still loading.
            RequestRefusedError: it can't be served.

        """
        await self._load_missing(name)

    async def _load_missing(
        self, name: str | None, adapters: Sequence[AdapterChoice] = (), routing: RoutingOptions | None = None
    ) -> None:
        is_own = name is not None and name != AUTO and self._resolve(name) == name
        names = [*([name] if name is not None and is_own else ()), *(choice.name for choice in adapters)]
        names += (routing and routing.adapters) or ()
        await self.adapter_loads.load_missing(self.base_model, names)

    def _check_adapters(self, policy: AccessPolicy, names: Sequence[str], field: str = "adapters") -> None:
        """Refuse adapters that a policy does not allow as if there were none of that name."""
        for name in names:
            if not policy.allows(name):
                if self.base_model.has_other(name):
                    self._note_refusal(policy, "adapter", name)
                raise UnknownAdapterError(f"there is no adapter {name!r}; see GET /v1/models", field)

    def _note_refusal(self, policy: AccessPolicy, reason: AccessReason, name: str, error: str | None = None) -> None:
        self.access_refusals.add(policy.name, reason)
        audit("policy.refuse", "refused", policy=policy.name, reason=reason, model=name, error=error)
