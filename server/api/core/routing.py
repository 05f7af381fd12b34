"""The choice that a router makes for a request whose model is ``auto``: as requests ask for it, and as replies tell."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from server.engine.interface import ExpertUsage, JsonObject

AUTO = "auto"  # the model that stands for whatever the router chooses
ROUTING_HEADER = "X-Greenroom-Routing"
MAX_SHOWN = 32  # scores of a reply


def method_of(value: object) -> object:
    if value == "arrow":
        raise ValueError("can't be 'arrow', because this server does not route by token yet: use 'embedding'")
    return value


class RoutingOptions(BaseModel):
    """Options of the router, a field of requests.

    Args:
        threshold: the similarity that an adapter must reach; None for the server's own.

    """

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    method: Annotated[Literal["embedding"], BeforeValidator(method_of, json_schema_input_type=str)] = "embedding"
    threshold: float | None = Field(None, ge=-1, le=1)


@dataclass(frozen=True)
class Routing:
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
    def score(self) -> float:
        """The score of the chosen model."""
        return self.scores[self.model]

    @property
    def member(self) -> JsonObject:
        """The member of a reply that tells of it."""
        return {"routing": self.body}

    @property
    def body(self) -> JsonObject:
        best_first = sorted(self.scores.items(), key=lambda item: item[1], reverse=True)
        shown = dict(best_first[:MAX_SHOWN]) | {self.model: self.score}
        return {
            "method": self.method,
            "model": self.model,
            "scores": {name: round(score, 6) for name, score in shown.items()},
            "reason": self.reason,
            "prompt_tokens": self.num_tokens,
            "seconds": round(self.seconds, 6),
        }


def routing_headers(routing: Routing | None) -> dict[str, str]:
    """Return the headers of a reply that tell which model was chosen."""
    if routing is None:
        return {}
    name = routing.model.encode("ascii", "backslashreplace").decode()
    printable = "".join(each if each.isprintable() else "?" for each in name)
    return {ROUTING_HEADER: f"{printable}; score={routing.score:.3f}; method={routing.method}"}


def greenroom_member(routing: Routing | None) -> dict[str, Any]:
    """Return the member ``greenroom`` of a reply; none if no router has chosen its model."""
    return {} if routing is None else {"greenroom": routing.member}
