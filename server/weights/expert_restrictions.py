"""ExpertRestrictions: the model without the experts that policies forbid."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import nn

from expert_store import CheckpointError, ExpertCatalog
from server.engine.interface import AccessPolicy, ForbiddenExperts, UnusableAccessPolicyError
from server.model.checkpoint.expert_restriction import ExpertRestriction
from server.model.experts.router import RouterWeights


class ExpertRestrictions:
    """Restrictions by forbidden experts; policies that forbid the same experts share one.

    Args:
        model: the modules that the routers' names belong to.
        catalog: the base model's own experts.
        routers: by layer.
    """

    def __init__(self, model: nn.Module, catalog: ExpertCatalog, routers: Mapping[int, RouterWeights]):
        self._model, self._catalog, self._routers = model, catalog, routers
        self._current: Mapping[ForbiddenExperts, ExpertRestriction] = {}  # both are replaced, never changed
        self._known: Mapping[ForbiddenExperts, ExpertRestriction] = {}  # with those of the policies before

    def prepare(self, policies: Iterable[AccessPolicy]) -> None:
        """Make the restrictions of policies. Those of the policies before stay until the next call.

        Raises:
            UnusableAccessPolicyError: the model can't run as a policy demands; nothing has changed.
        """
        current: dict[ForbiddenExperts, ExpertRestriction] = {}
        for policy in policies:
            forbidden = policy.forbidden_experts
            if forbidden and forbidden not in current:
                try:
                    current[forbidden] = self._known.get(forbidden) or self._make(forbidden)
                except (ValueError, CheckpointError) as error:
                    raise UnusableAccessPolicyError(f"the policy {policy.name}: forbidden_experts: {error}") from error
        self._known = {**self._current, **current}
        self._current = current

    def find(self, forbidden: ForbiddenExperts) -> ExpertRestriction | None:
        """Return the restriction of a policy that was prepared, perhaps long ago; None if it forbids nothing."""
        return (self._known.get(forbidden) or self._make(forbidden)) if forbidden else None

    def _make(self, forbidden: ForbiddenExperts) -> ExpertRestriction:
        num_experts = {layer: len(entry.experts) for layer, entry in self._catalog.layers.items()}
        return ExpertRestriction(self._model, self._catalog, self._routers, forbidden.in_layers(num_experts))
