"""A model that answers requests, with the weights that one of its names stands for."""

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, Self
from weakref import WeakValueDictionary

from server.api.core.access.caller import current_caller
from server.api.core.choice.auto_choice import AUTO, AutoChoice, AutoChoiceByToken
from server.api.core.choice.profiles import AdapterProfiles
from server.api.core.grammars.compiler import GrammarCompiler
from server.engine.interface import (
    AdapterAdministration,
    AdapterLoader,
    ChoiceByToken,
    ExpertAdministration,
    ExpertHealth,
    GenerationEngine,
    ModelCard,
    RequestMemory,
    RequestRefusedError,
    RequestWeights,
    SamplingDefaults,
    TextCodec,
    VariantAdministration,
    WeightsDirectory,
)

NO_ADAPTERS = "this server loads no adapters; start it with --adapters-dir"


class UnfinishedWork(Protocol):
    """A request that is not answered yet, as lists of requests show it."""

    @property
    def model(self) -> str:
        """The name of the model that answers it."""

    @property
    def adapters(self) -> Mapping[str, float]:
        """Factors of its adapters that are the same for all tokens, by name."""

    @property
    def auto_choice(self) -> AutoChoice | None:
        """The choice of the router; None if the request named its model."""


def always_ok() -> ExpertHealth:
    return "ok"


@dataclass
class LoadedModel:
    """A model that answers requests.

    Args:
        adapters_on_request: loads adapters that requests name; None if requests name only what is served.
        directory: names of weights beside the base model's; None if there are none.
        weights: names of those that the model runs with.
        base: the name of the base model, if ``name`` is that of other weights.
        auto_choice: the choice of the router, if it has chosen ``name``.
        profiles: what the router knows of adapters.
        memory: the memory that requests hold.
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
    adapters_on_request: AdapterLoader | None = None
    variants: VariantAdministration | None = None
    directory: WeightsDirectory | None = None
    weights: RequestWeights | None = None
    base: str | None = None
    auto_choice: AutoChoice | None = None
    profiles: AdapterProfiles = field(default_factory=AdapterProfiles)
    grammar_compiler: GrammarCompiler = field(init=False)
    unfinished: WeakValueDictionary[str, UnfinishedWork] = field(default_factory=WeakValueDictionary)  # by id
    memory: RequestMemory = field(default_factory=RequestMemory)

    def __post_init__(self) -> None:
        self.grammar_compiler = GrammarCompiler(self.codec, self.memory)

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

    def chosen(self, name: str | None, adapters: Sequence[tuple[str, float]], auto_choice: AutoChoice) -> Self:
        """Return the model ``auto`` with the weights that a router has chosen; None for those of the base model.

        Raises:
            RequestRefusedError: there are no such weights any more, or no such adapters.
        """
        base = copy.copy(self)
        base.name, base.base, base.auto_choice = self.base or self.name, None, auto_choice
        return (base if name is None else base.named(name)).selecting(adapters)

    def choosing_by_token(self, adapters: Sequence[tuple[str, float]], by_token: ChoiceByToken) -> Self:
        """Return the model ``auto`` with a router that chooses adapters for each token.

        Raises:
            RequestRefusedError: there are no such adapters.
        """
        if self.directory is None:
            raise RequestRefusedError(NO_ADAPTERS, "routing")
        selected = copy.copy(self)
        weights = self.directory.resolve(None, adapters, current_caller().policy, by_token)
        assert weights is not None
        selected.weights, selected.auto_choice = weights, AutoChoiceByToken.of(weights.by_token or by_token)
        return selected

    def selecting(self, adapters: Sequence[tuple[str, float]]) -> Self:
        """Return the model with the weights of its name, with adapters, and with what the caller's policy demands.

        Raises:
            RequestRefusedError: there are no such weights any more, or no such adapters.
            AccessRefusedError, RequiredAdapterError: the policy can't be followed.
        """
        name = None if self.base is None or self.is_auto else self.name
        policy = current_caller().policy
        if self.directory is None:
            if adapters or (policy is not None and policy.changes_weights):
                raise RequestRefusedError(NO_ADAPTERS, "adapters")
            return self
        selected = copy.copy(self)
        selected.weights = weights = self.directory.resolve(name, adapters, policy)
        if weights is not None and weights.by_token is not None and self.auto_choice is None:
            selected.auto_choice = AutoChoiceByToken.of(weights.by_token)
        return selected
