"""Names of the weights that a request runs with beside the base model's."""

from __future__ import annotations

from dataclasses import dataclass, field

from server.engine.interface.access_policy import ForbiddenExperts
from server.engine.interface.adapter_choice import ChoiceByToken


@dataclass(frozen=True)
class RequestWeights:
    """Names that the engine finds weights by. Plain data, as all of a request.

    Args:
        pin: an id of the request. Its sequences run with the versions that the names had when the first of them was
            accepted, as long as one of them has not ended; a later one gets the versions of that time.
        variant: the expert variant; None for the model's own experts.
        adapters: names and factors of the adapters that all tokens have, those of the caller's policy among them.
        by_token: the choice of further adapters for each token; of a mixture, as it was when the request came.
        forbidden_experts: experts that no token may be routed to.
    """

    pin: str
    variant: str | None = None
    adapters: tuple[tuple[str, float], ...] = ()
    by_token: ChoiceByToken | None = None
    forbidden_experts: ForbiddenExperts = field(default_factory=ForbiddenExperts)

    @property
    def factors(self) -> dict[str, float]:
        """The factor of each adapter that all tokens have."""
        return dict(self.adapters)
