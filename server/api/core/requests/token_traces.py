"""The experts and adapters of each token of a choice, as its reply tells them."""

import json
from collections.abc import Mapping

from server.api.core.json_text.parts import JsonList
from server.engine.interface import RoutedExperts, TokenEvent

MAX_ADAPTERS = 8  # of a token, the heaviest ones
DECIMALS = 4


class TokenTraces:
    """Keeps what a request asks to know of each token until a reply takes it.

    Tokens are encoded as they come: encoding all of a long reply at once would block the event loop.
    """

    def __init__(self, *, experts: bool, adapters: bool) -> None:
        self._experts = JsonList() if experts else None
        self._adapters = JsonList() if adapters else None
        kept = {"experts": self._experts, "adapters": self._adapters}
        self.members = {name: tokens for name, tokens in kept.items() if tokens is not None}  # of a choice

    def note(self, event: TokenEvent) -> None:
        """Keep the traces of an event's new token."""
        if self._experts is not None and event.experts is not None:
            self._experts.append_encoded(experts_json(event.experts))
        if self._adapters is not None and event.adapters is not None:
            self._adapters.append_encoded(adapters_json(event.adapters))

    @property
    def nbytes(self) -> int:
        """Bytes of what is kept."""
        return sum(tokens.nbytes for tokens in self.members.values())

    def take(self) -> str:
        """Return what was noted since the last call, as members of a JSON object, each after a comma."""
        taken = ""
        for name, tokens in self.members.items():
            taken += f',"{name}":[{tokens.encoded.decode()}]'
            tokens.clear()
        return taken


def experts_json(chosen: RoutedExperts) -> str:
    """Encode the experts of one token, a list for each MoE layer."""
    return json.dumps([[expert for expert in layer if expert >= 0] for layer in chosen.tolist()], separators=(",", ":"))


def adapters_json(factors: Mapping[str, float]) -> str:
    """Encode the factors of a token's adapters by name, those of most effect first, without those that add nothing."""
    ordered = sorted(factors.items(), key=lambda item: abs(item[1]), reverse=True)[:MAX_ADAPTERS]
    rounded = {name: round(factor, DECIMALS) for name, factor in ordered}
    return json.dumps({name: factor for name, factor in rounded.items() if factor}, separators=(",", ":"))
