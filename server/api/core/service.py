"""The state of the server that routes work with: its model, limits and keys."""

import asyncio
import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Self
from weakref import WeakSet

from server.api.core.adapter_choice import AdapterChoice
from server.api.core.adapter_profiles import AdapterProfiles
from server.api.core.api_keys import Keys
from server.api.core.audit import audit
from server.api.core.caller import current_caller
from server.api.core.capacity import Capacity
from server.api.core.errors import DrainingError, InvalidRequestError, ModelNotFoundError, ServiceUnavailableError
from server.api.core.expert_sampler import ExpertSampler
from server.api.core.grammar_compiler import GrammarCompiler
from server.api.core.host_rules import HostRules
from server.api.core.ignored_names import IgnoredNames
from server.api.core.policies import Policies, PolicyRefusals
from server.api.core.rate_limiter import RateLimiter
from server.api.core.routing import AUTO, Routing, RoutingByToken, RoutingOptions
from server.api.core.tracer import Tracer
from server.api.core.validation import quote
from server.engine.interface import (
    AdapterAdministration,
    ExpertAdministration,
    ExpertHealth,
    GenerationEngine,
    ModelCard,
    Policy,
    PolicyReason,
    PolicyRefusedError,
    RequestRefusedError,
    RequestWeights,
    RequiredAdapterError,
    SamplingDefaults,
    TextCodec,
    TokenRouting,
    UnknownAdapterError,
    VariantAdministration,
    WeightsDirectory,
)
from server.setting_values import ModelAlias

MAX_BODIES_BYTES = 64 << 20  # bodies of all requests whose response has not begun
BODIES_REFUSAL = "The server is processing too many large bodies: try again later."
MAX_ALL_PROMPT_LOGPROBS = 1 << 20  # logprobs of all running and waiting requests; each takes some hundred bytes
LOGPROBS_REFUSAL = "The server is computing too many logprobs of prompts: try again later."
UNKNOWN_FIELD = "Ignoring the unknown field %s of a request body."
NO_ADAPTERS = "this server loads no adapters; start it with --adapters-dir"
NO_CANDIDATES = (
    "'model' is 'auto', but no adapter can be chosen: load one with 'examples' or a 'description', or name a model."
)
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


def always_ok() -> ExpertHealth:
    return "ok"


@dataclass
class LoadedModel:
    """A model that answers requests.

    Args:
        directory: names of weights beside the base model's; None if there are none.
        weights: those that the model runs with.
        base: the name of the base model, if ``name`` is that of other weights.
        routing: the choice of the router, if it has chosen ``name``.
        profiles: what the router knows of adapters.
    """

    name: str
    engine: GenerationEngine
    codec: TextCodec
    defaults: SamplingDefaults = field(default_factory=SamplingDefaults)
    experts: ExpertAdministration | None = None
    expert_health: Callable[[], ExpertHealth] = always_ok
    keeps_stalls: bool = False  # the engine records each request's longest stalls
    created: int = field(default_factory=lambda: int(time.time()))  # Unix time
    card: ModelCard = field(default_factory=ModelCard)
    adapters: AdapterAdministration | None = None
    variants: VariantAdministration | None = None
    directory: WeightsDirectory | None = None
    weights: RequestWeights | None = None
    base: str | None = None
    routing: Routing | None = None
    profiles: AdapterProfiles = field(default_factory=AdapterProfiles)
    grammar_compiler: GrammarCompiler = field(init=False)
    logprobs_capacity: Capacity = field(default_factory=lambda: Capacity(MAX_ALL_PROMPT_LOGPROBS, LOGPROBS_REFUSAL))

    def __post_init__(self) -> None:
        self.grammar_compiler = GrammarCompiler(self.codec)

    @property
    def other_names(self) -> list[str]:
        """Names of weights beside the base model's, and ``auto`` if a router can choose one of them."""
        names = [] if self.directory is None else self.directory.names()
        return [*names, AUTO] if self.has_candidates else names

    @property
    def has_candidates(self) -> bool:
        """True if a router can choose adapters."""
        if self.directory is None or not self.engine.hidden_size:
            return False
        return any(map(self.profiles.can_choose, self.directory.candidates()))

    @property
    def is_auto(self) -> bool:
        """True if a router is yet to choose the weights."""
        return self.name == AUTO and self.base is not None

    def has_other(self, name: str) -> bool:
        """Return True if a name is that of weights beside the base model's, or ``auto`` while a router can choose."""
        if name == AUTO:
            return self.has_candidates
        return self.directory is not None and self.directory.root(name) is not None

    @property
    def root(self) -> str:
        """The path of its weights, or the name of the base model."""
        root = None if self.directory is None or self.base is None else self.directory.root(self.name)
        return root or self.base or self.name

    def named(self, name: str) -> Self:
        """Return the base model under the name of other weights."""
        selected = copy.copy(self)
        selected.name, selected.base = name, self.name
        return selected

    def chosen(self, name: str | None, adapters: Sequence[tuple[str, float]], routing: Routing) -> Self:
        """Return the model ``auto`` with the weights that a router has chosen; None for those of the base model.

        Raises:
            RequestRefusedError: there are no such weights any more, or no such adapters.
        """
        base = copy.copy(self)
        base.name, base.base, base.routing = self.base or self.name, None, routing
        return (base if name is None else base.named(name)).selecting(adapters)

    def routing_tokens(self, adapters: Sequence[tuple[str, float]], routing: TokenRouting) -> Self:
        """Return the model ``auto`` with a router that chooses adapters for each token.

        Raises:
            RequestRefusedError: there are no such adapters.
        """
        if self.directory is None:
            raise RequestRefusedError(NO_ADAPTERS, "routing")
        selected = copy.copy(self)
        weights = self.directory.resolve(None, adapters, current_caller().policy, routing)
        assert weights is not None
        selected.weights, selected.routing = weights, RoutingByToken.of(routing, weights)
        return selected

    def selecting(self, adapters: Sequence[tuple[str, float]]) -> Self:
        """Return the model with the weights of its name, with adapters, and with what the caller's policy demands.

        Raises:
            RequestRefusedError: there are no such weights any more, or no such adapters.
            PolicyRefusedError, RequiredAdapterError: the policy can't be followed.
        """
        name = None if self.base is None or self.is_auto else self.name
        policy = current_caller().policy
        if self.directory is None:
            if adapters or (policy is not None and policy.changes_weights):
                raise RequestRefusedError(NO_ADAPTERS, "adapters")
            return self
        selected = copy.copy(self)
        selected.weights = weights = self.directory.resolve(name, adapters, policy)
        if weights is not None and weights.token_routing is not None and self.routing is None:
            selected.routing = RoutingByToken.of(weights.token_routing, weights)
        return selected


def no_metrics() -> bytes:
    return b""


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
    policies: Policies = field(default_factory=Policies)
    policy_refusals: PolicyRefusals = field(default_factory=PolicyRefusals)
    host_rules: HostRules = field(default_factory=HostRules)
    rate_limiter: RateLimiter = field(default_factory=RateLimiter)
    body_capacity: Capacity = field(default_factory=lambda: Capacity(MAX_BODIES_BYTES, BODIES_REFUSAL))
    large_bodies: asyncio.Lock = field(default_factory=asyncio.Lock)  # held while one is parsed
    # Tasks of requests that last until the server stops, such as expert streams; draining does not wait for them.
    endless: WeakSet[asyncio.Task[Any]] = field(default_factory=WeakSet)
    metrics: Callable[[], bytes] = no_metrics  # Prometheus' text format; called off the event loop
    unknown_fields: IgnoredNames = field(default_factory=lambda: IgnoredNames(UNKNOWN_FIELD))
    ignored_tools: IgnoredNames = field(default_factory=lambda: IgnoredNames(IGNORED_TOOL))
    expert_sampler: ExpertSampler = field(default_factory=ExpertSampler)
    isolates_prefixes: bool = False  # requests share cached prefixes only with those of the same key
    logs_prompts: bool = False
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
        if name is None:
            raise ModelNotFoundError("Name a model of GET /v1/models in 'model'.", "model")
        known = f"this server serves {quote(self.base_model.name)}" if policy is None else "see GET /v1/models"
        raise ModelNotFoundError(f"The model {quote(name)} does not exist: {known}.", "model")

    def _find(self, name: str | None) -> LoadedModel | None:
        model = self.base_model
        if name is not None and model.has_other(name):
            return model.named(name)
        return model if name is None or name == model.name or self._resolve(name) == model.name else None

    def _resolve(self, name: str) -> str:
        """Return the name of the model that an alias stands for; a plain alias precedes patterns."""
        by_precedence = sorted(self.aliases, key=lambda alias: alias.is_pattern)
        return next((alias.model for alias in by_precedence if alias.matches(name)), name)

    def accepting_model(
        self, name: str | None, adapters: Sequence[AdapterChoice] = (), routing: RoutingOptions | None = None
    ) -> LoadedModel:
        """Return the model that answers a new request, with the weights that it asks for.

        Routes that generate text get their model only from here.

        Raises:
            ServiceUnavailableError: the model is loading, the server is draining, or the engine died.
            ModelNotFoundError: there is no such model.
            RequestRefusedError: there are no such adapters.
            RequiredAdapterError: an adapter of the caller's policy is not loaded.
            InvalidRequestError: a router is to choose an adapter, but there is none to choose.

        """
        if self.state is ServiceState.DRAINING:
            raise DrainingError("The server is shutting down: send the request to another server.")
        base = self.base_model
        if name == AUTO and not base.has_candidates and self._resolve(name) != base.name != name:
            if routing is None or routing.by_token is None:
                raise InvalidRequestError(NO_CANDIDATES, "model")
            model = base.named(AUTO)
        else:
            model = self.loaded_model(name)
        if self.state is ServiceState.DEAD:
            raise ServiceUnavailableError("The engine has stopped: see the server's log, and restart the server.")
        policy = current_caller().policy
        chosen = [(choice.name, choice.weight) for choice in adapters]
        if policy is not None:
            self._check_adapters(policy, [each for each, _ in chosen])
            self._check_adapters(policy, (routing and routing.adapters) or (), "routing.adapters")
        try:
            selected = model.selecting(chosen)
        except (PolicyRefusedError, RequiredAdapterError) as error:
            if policy is not None:
                self._note_refusal(policy, error.reason, model.name, str(error))
            raise
        return model if model.is_auto else selected

    def _check_adapters(self, policy: Policy, names: Sequence[str], field: str = "adapters") -> None:
        """Refuse adapters that a policy does not allow as if there were none of that name."""
        for name in names:
            if not policy.allows(name):
                if self.base_model.has_other(name):
                    self._note_refusal(policy, "adapter", name)
                raise UnknownAdapterError(f"there is no adapter {name!r}; see GET /v1/models", field)

    def _note_refusal(self, policy: Policy, reason: PolicyReason, name: str, error: str | None = None) -> None:
        self.policy_refusals.add(policy.name, reason)
        audit("policy.refuse", "refused", policy=policy.name, reason=reason, model=name, error=error)
