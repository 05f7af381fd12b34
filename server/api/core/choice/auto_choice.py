"""The choice that a router makes for a request whose model is ``auto``: as requests ask for it, and as replies tell."""

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from server.engine.interface import AdapterShares, ChoiceByToken, ExpertUsage, JsonObject

AUTO = "auto"  # the model that stands for whatever the router chooses
ROUTING_HEADER = "X-Greenroom-Routing"
MAX_SHOWN = 32  # scores of a reply
MAX_NAMED = 64
DEFAULT_TOP_K = 3
MIN_TEMPERATURE, MAX_TEMPERATURE = 1e-3, 1e3


class RoutingOptions(BaseModel):
    """Options of the router, a field of requests.

    Args:
        method: ``embedding`` chooses one adapter for the request, ``arrow`` some for each token at each layer.
        threshold: the similarity that an adapter must reach; None for the server's own. Of ``embedding``.
        adapters: names of those to choose from; None for all that can be. Of ``arrow``, as ``top_k``.
        top_k: the most that a token has at a layer.
        temperature: divides scores before the softmax.

    """

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    method: Literal["embedding", "arrow"] = "embedding"
    threshold: float | None = Field(None, ge=-1, le=1)
    adapters: list[str] | None = Field(None, min_length=1, max_length=MAX_NAMED)
    top_k: int | None = Field(None, ge=1, le=MAX_NAMED)
    temperature: float | None = Field(None, ge=MIN_TEMPERATURE, le=MAX_TEMPERATURE)

    @model_validator(mode="after")
    def check_method(self) -> Self:
        others = ("adapters", "top_k", "temperature") if self.method == "embedding" else ("threshold",)
        for name in others:
            if getattr(self, name) is not None:
                raise ValueError(f"has {name!r}, which the method {self.method!r} does not take: leave it out")
        return self

    @property
    def by_token(self) -> ChoiceByToken | None:
        """The choice for each token; None if one is made for the request."""
        if self.method != "arrow":
            return None
        adapters = None if self.adapters is None else tuple(self.adapters)
        return ChoiceByToken(adapters, self.top_k or DEFAULT_TOP_K, self.temperature or 1.0)


@dataclass(frozen=True)
class AutoChoice:
    """The choice for one request.

    Args:
        model: the name of the adapter or of the base model.
        scores: of each candidate and the base model, by name; their sum is 1.
        reason: a sentence.
        num_tokens: the tokens of the prompt that were read to choose.
        started_at: by ``time.monotonic``, as ``ended_at``.
        expert_usage: the cost of reading them.

    """

    method: str
    model: str
    scores: Mapping[str, float]
    reason: str
    num_tokens: int
    started_at: float
    ended_at: float
    expert_usage: ExpertUsage

    @property
    def seconds(self) -> float:
        return self.ended_at - self.started_at

    @property
    def score(self) -> float | None:
        """The score of the chosen model; None if none was chosen for the whole request."""
        return self.scores[self.model]

    @property
    def shares(self) -> Mapping[str, float]:
        """The mean weights of adapters that were chosen for each token; none if one choice was made."""
        return {}

    def note(self, shares: AdapterShares) -> None:
        """Add what was chosen for further tokens; one choice for the whole request knows it already."""

    @property
    def member(self) -> JsonObject:
        """The member of a reply that tells of it."""
        return {"routing": self.body}

    @property
    def body(self) -> JsonObject:
        best_first = sorted(self.scores.items(), key=lambda item: item[1], reverse=True)
        shown = dict(best_first[:MAX_SHOWN]) | {self.model: self.scores[self.model]}
        return {
            "method": self.method,
            "model": self.model,
            "scores": {name: round(score, 6) for name, score in shown.items()},
            "reason": self.reason,
            "prompt_tokens": self.num_tokens,
            "seconds": round(self.seconds, 6),
        }


@dataclass
class ChosenShares:
    """The shares of adapters in the tokens of a request until now, and the choice that was made."""

    choice: ChoiceByToken
    num_tokens: int = 0
    sums: Counter[str] = field(default_factory=Counter)

    def add(self, shares: AdapterShares) -> None:
        self.choice = shares.choice  # a mixture that was replaced before the request began has another
        self.num_tokens += shares.num_tokens
        self.sums.update(shares.sums)

    @property
    def means(self) -> dict[str, float]:
        """The mean factor of each adapter to choose from over the layers and tokens, the heaviest first."""
        means = {name: self.sums[name] / max(1, self.num_tokens) for name in self.choice.adapters or ()}
        return dict(sorted(means.items(), key=lambda item: item[1], reverse=True))


@dataclass(frozen=True)
class AutoChoiceByToken(AutoChoice):
    """The choice of adapters for each token of one request, by Arrow or by a trained gate.

    Args:
        chosen: grows with the tokens.

    """

    chosen: ChosenShares

    @classmethod
    def of(cls, choice: ChoiceByToken) -> Self:
        now = time.monotonic()
        method, model, how = "arrow", AUTO, "by the input that each of them changes most"
        if choice.gate is not None:
            method, model, how = "gate", choice.gate, f"by the trained gate of {choice.gate!r}"
        reason = f"Adapters are chosen for each token and layer, {how}."
        return cls(method, model, {}, reason, 0, now, now, ExpertUsage(), ChosenShares(choice))

    @property
    def score(self) -> None:
        return None

    def note(self, shares: AdapterShares) -> None:
        self.chosen.add(shares)

    @property
    def shares(self) -> Mapping[str, float]:
        """They are over the tokens that were computed until now, the heaviest first."""
        return {name: round(share, 6) for name, share in self.chosen.means.items()}

    @property
    def body(self) -> JsonObject:
        choice, shares = self.chosen.choice, self.shares
        return {
            "method": self.method,
            "model": self.model,
            "adapters": sorted(shares),
            "top_k": choice.top_k,
            "temperature": choice.temperature,
            "weights": dict(shares),
            "reason": self.reason,
        }


def routing_headers(choice: AutoChoice | None) -> dict[str, str]:
    """Return the headers of a reply that tell which model was chosen."""
    if choice is None:
        return {}
    name = choice.model.encode("ascii", "backslashreplace").decode()
    printable = "".join(each if each.isprintable() else "?" for each in name)
    score = "" if choice.score is None else f" score={choice.score:.3f};"
    return {ROUTING_HEADER: f"{printable};{score} method={choice.method}"}
