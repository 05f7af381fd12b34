"""Directory: what the names in requests mean beside the base model."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from uuid import uuid4
from weakref import WeakValueDictionary

from server.engine.interface import (
    AccessPolicy,
    AccessRefusedError,
    AdapterCandidate,
    ChoiceByToken,
    ForbiddenExperts,
    RequestRefusedError,
    RequestWeights,
    RequiredAdapterError,
    UnknownAdapterError,
    UnusableAccessPolicyError,
)
from server.engine.sequence_weights import SequenceWeights
from server.model.checkpoint.expert_restriction import ExpertRestriction
from server.weights.adapter_memory import AdapterMemory
from server.weights.adapter_registry import AdapterRegistry
from server.weights.adapter_selection import AdapterSelection
from server.weights.expert_restrictions import ExpertRestrictions
from server.weights.selection import CombinedSelection, RestrictedSelection, VariantSelection, restricted
from server.weights.variant_registry import VariantRegistry, VariantVersion

Factors = Sequence[tuple[str, float]]  # names of adapters, and the factor of what each adds
Chosen = tuple[tuple[str, float], ...]  # the same

MAX_ADAPTERS = 16  # of one request
MAX_ROUTED = 64  # that a router chooses from for one request
NO_ADAPTERS = "this server loads no adapters; start it with --adapters-dir"


class Directory:
    """A ``WeightsDirectory`` over the registered adapters and the loaded expert variants.

    Args:
        base: the name of the base model. Variants are served as ``BASE:VARIANT``.
        variants: None if none can be loaded.
        adapters: the adapters and the memory for them; None if none can be loaded.
        restrictions: remove the experts that policies forbid; None if no policy may forbid any.
    """

    def __init__(
        self,
        base: str,
        variants: VariantRegistry | None = None,
        adapters: tuple[AdapterRegistry, AdapterMemory] | None = None,
        restrictions: ExpertRestrictions | None = None,
    ):
        self._prefix, self._variants, self._restrictions = f"{base}:", variants, restrictions
        self._adapters = None if adapters is None else adapters[0]
        self._memory = None if adapters is None else adapters[1]
        self._selected: WeakValueDictionary[str, SequenceWeights] = WeakValueDictionary()  # by the pin of a request

    def names(self) -> list[str]:
        adapters = [] if self._adapters is None else self._adapters.names()
        variants = [] if self._variants is None else self._variants.names()
        return [*adapters, *(f"{self._prefix}{name}" for name in variants)]

    def root(self, name: str) -> str | None:
        version = self._find_variant(self._variant_of(name))
        if version is not None:
            return str(version.folder)
        adapter = None if self._adapters is None else self._adapters.find(name)
        return None if adapter is None else str(adapter.folder)

    def candidates(self) -> list[AdapterCandidate]:
        return [] if self._adapters is None else self._adapters.candidates()

    def note_routed(self, name: str | None) -> None:
        if self._adapters is not None:
            self._adapters.note_routed(name)

    def resolve(
        self,
        name: str | None,
        adapters: Factors = (),
        policy: AccessPolicy | None = None,
        by_token: ChoiceByToken | None = None,
    ) -> RequestWeights | None:
        variant = None if name is None else self._variant_of(name)
        own = [] if name is None or variant is not None else [(name, 1.0)]
        chosen, by_token = self._choose_adapters(own, adapters, policy, by_token)
        restriction = self._check_experts(variant, policy)
        forbidden = ForbiddenExperts() if policy is None or restriction is None else policy.forbidden_experts
        if variant is None and not (chosen or by_token or forbidden):
            return None
        return RequestWeights(uuid4().hex, variant, chosen, by_token, forbidden)

    def select(self, names: RequestWeights) -> SequenceWeights:
        """Return the weights that a request names; the same object for all its sequences, while one of them has it."""
        selected = self._selected.get(names.pin)
        return selected or self._selected.setdefault(names.pin, self._select(names))

    def _select(self, names: RequestWeights) -> SequenceWeights:
        experts, adapters = self._select_experts(names), self._select_adapters(names)
        if experts is None:
            assert adapters is not None
            return adapters
        if adapters is None or self._adapters is None:
            return experts
        routers = self._adapters.targets.routers
        return CombinedSelection(
            experts, adapters, lambda: [layer for name, layer in routers.items() if name in adapters.targets]
        )

    def prepare(self, policies: Iterable[AccessPolicy]) -> None:
        policies = list(policies)
        for policy in policies:
            if policy.adapters and self._adapters is None:
                raise UnusableAccessPolicyError(f"the policy {policy.name} adds adapters, but {NO_ADAPTERS}")
            if policy.forbidden_experts and self._restrictions is None:
                raise UnusableAccessPolicyError(
                    f"the policy {policy.name}: this model can't run without some of its experts"
                )
        if self._restrictions is not None:
            self._restrictions.prepare(policies)

    def _variant_of(self, name: str) -> str | None:
        """Return the variant that a name stands for, if it has the form of one."""
        is_adapter = self._adapters is not None and self._adapters.find(name) is not None
        return name.removeprefix(self._prefix) if name.startswith(self._prefix) and not is_adapter else None

    def _find_variant(self, variant: str | None) -> VariantVersion | None:
        return None if variant is None or self._variants is None else self._variants.find(variant)

    def _check_experts(self, variant: str | None, policy: AccessPolicy | None) -> ExpertRestriction | None:
        """Check that a variant is there, and that it can run without the experts that a policy forbids.

        Returns:
            The restriction by these experts; None if the policy forbids none.
        """
        version = self._find_variant(variant)
        if variant is not None and version is None:
            raise RequestRefusedError(f"there is no expert variant {variant!r}; see GET /v1/models", "model")
        if policy is None or self._restrictions is None:
            return None
        restriction = self._restrictions.find(policy.forbidden_experts)
        if restriction is not None and version is not None:
            restricted(restriction, version.files.variant)
        return restriction

    def _select_experts(self, names: RequestWeights) -> VariantSelection | RestrictedSelection | None:
        """Return the experts of a request; None for those of the base model."""
        selected = None
        if names.variant is not None:
            if self._variants is None:
                raise RequestRefusedError(f"there is no expert variant {names.variant!r}; see GET /v1/models", "model")
            selected = VariantSelection(names.variant, self._variants)
        if not names.forbidden_experts:
            return selected
        restriction = None if self._restrictions is None else self._restrictions.find(names.forbidden_experts)
        if restriction is None:
            message = "this model can't run without some of its experts, as the key demands"
            raise AccessRefusedError(message, "model", "experts")
        return RestrictedSelection(restriction, selected)

    def _select_adapters(self, names: RequestWeights) -> AdapterSelection | None:
        """Return the adapters of a request; None if it has none."""
        if not names.adapters and names.by_token is None:
            return None
        registry = self._adapters
        if registry is None or self._memory is None:
            raise RequestRefusedError(NO_ADAPTERS, "adapters")
        return AdapterSelection(
            names.adapters,
            registry.find,
            self._memory,
            by_token=names.by_token,
            note=registry.note_tokens,
            note_request=registry.note_request,
        )

    def _choose_adapters(
        self, own: Factors, added: Factors, policy: AccessPolicy | None, by_token: ChoiceByToken | None
    ) -> tuple[Chosen, ChoiceByToken | None]:
        """Return the adapters of a request that all tokens have, and the choice of others for each token.

        Args:
            own: the adapter that is the request's model, if one is.
            added: those that the request adds to its model.
            policy: of the caller's key; a request may not give the adapters that it adds another factor.
            by_token: chooses further ones for each token.
        """
        required = () if policy is None else policy.adapters
        if not (own or added or required or by_token):
            return (), None
        if self._adapters is None or self._memory is None:
            raise RequestRefusedError(NO_ADAPTERS, "adapters")
        chosen = [*own, *added]
        if len(chosen) + len(required) > MAX_ADAPTERS:
            beside = f" beside the {len(required)} of its key" if required else ""
            most = MAX_ADAPTERS - len(required)
            raise RequestRefusedError(f"a request may use at most {most} adapters{beside}", "adapters")
        names = [each for each, _ in chosen]
        for index, each in enumerate(names):
            if self._adapters.find(each) is None:
                field = "model" if index < len(own) else "adapters"
                raise UnknownAdapterError(f"there is no adapter {each!r}; see GET /v1/models", field)
            if names.count(each) > 1:
                raise RequestRefusedError(f"the adapter {each!r} is chosen twice; name it once", "adapters")
        self._check_required(self._adapters, added, required)
        model = self._adapters.find(own[0][0]) if own else None
        if model is not None and model.by_token is not None:
            chosen, by_token = chosen[1:], model.by_token
        mixture = next((each for each, _ in chosen if _is_mixture(self._adapters, each)), None)
        if mixture is not None:
            raise RequestRefusedError(f"{mixture!r} is a mixture with a gate; name it as the 'model'", "adapters")
        always = dict(required)
        chosen = [(name, weight) for name, weight in chosen if name not in always]
        chosen = [*chosen, *required]
        if by_token is not None and by_token.gate is None:
            names = self._routed(self._adapters, by_token, [name for name, _ in chosen], policy)
            by_token = replace(by_token, adapters=tuple(names))
        return tuple(chosen), by_token

    @staticmethod
    def _check_required(registry: AdapterRegistry, added: Factors, required: Factors) -> None:
        """Refuse a request that can't have the adapters that its key's policy adds, or gives them another factor."""
        for name, weight in required:
            if registry.find(name) is None:
                raise RequiredAdapterError(
                    f"the adapter {name!r}, which every request of this key uses, is not loaded; ask an administrator"
                )
            if _is_mixture(registry, name):
                raise RequiredAdapterError(
                    f"the adapter {name!r}, which every request of this key uses, is a mixture with a gate; ask an "
                    "administrator for another one"
                )
            if (name, weight) not in added and name in dict(added):
                message = f"the adapter {name!r} is part of every request of this key; leave it out of 'adapters'"
                raise AccessRefusedError(message, "adapters", "adapter")

    @staticmethod
    def _routed(
        registry: AdapterRegistry, by_token: ChoiceByToken, fixed: Collection[str], policy: AccessPolicy | None
    ) -> list[str]:
        """Return the adapters that a router chooses from for each token: of those that a policy allows."""
        allowed = [each for each in registry.names() if policy is None or policy.allows(each)]
        field = "routing.adapters"
        if by_token.adapters is None:
            names = [each for each in allowed if each not in fixed and not registry.reason_against_tokens(each)]
            if not names:
                others = [each for each in allowed if each not in fixed]
                raise RequestRefusedError(_none_by_token(registry, others), "routing")
            if len(names) > MAX_ROUTED:
                raise RequestRefusedError(
                    f"{len(names)} adapters can be chosen by token, more than {MAX_ROUTED}: name those to choose from",
                    field,
                )
            return sorted(names)
        for each in by_token.adapters:
            if each not in allowed:
                raise UnknownAdapterError(f"there is no adapter {each!r}; see GET /v1/models", field)
            if each in fixed or by_token.adapters.count(each) > 1:
                raise RequestRefusedError(f"the adapter {each!r} is chosen twice; name it once", field)
            reason = registry.reason_against_tokens(each)
            if reason is not None:
                raise RequestRefusedError(f"the adapter {each!r} can't be chosen by token: {reason}", field)
        return sorted(by_token.adapters)


def _is_mixture(registry: AdapterRegistry, name: str) -> bool:
    """Return True if a name is that of a mixture with a gate."""
    version = registry.find(name)
    return version is not None and version.by_token is not None


def _none_by_token(registry: AdapterRegistry, names: Collection[str]) -> str:
    """Say why no adapter can be chosen by token, and which model chooses by token all the same."""
    gates = [each for each in names if _is_mixture(registry, each)]
    reasons = {each: registry.reason_against_tokens(each) for each in names if each not in gates}
    first = next((f" {name!r} can't, since {reason};" for name, reason in reasons.items()), "")
    instead = f"ask for the model {gates[0]!r}, whose gate chooses by token, or " if gates else ""
    return f"no adapter can be chosen by token:{first} {instead}load an adapter that adds to linear layers only"
