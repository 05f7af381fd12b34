"""Answers of a server, put together from their chunks, and compared with those to the same requests alone."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

Json = Any

NEAR = 1e-3  # difference of log-probabilities between which rounding may decide


@dataclass
class Answer:
    """The content of an answer, as far as it was read."""

    status: int
    choices: dict[int, dict[str, Json]] = field(default_factory=dict)  # by index
    error: str = ""
    is_complete: bool = False

    def add(self, body: dict[str, Json]) -> None:
        """Add a chunk of a stream, or a body."""
        for choice in body.get("choices") or body.get("data") or ():
            index = choice.get("index", 0)
            self.choices[index] = merge(self.choices.get(index), choice)

    def with_adapter_names(self, names: dict[str, str]) -> Answer:
        """Return this answer with other names of adapters in ``return_adapters``; ``names`` maps those that it has."""
        choices = dict(self.choices)
        for index, choice in choices.items():
            if choice.get("adapters"):
                renamed = [
                    weights and {names.get(name, name): weight for name, weight in weights.items()}
                    for weights in choice["adapters"]
                ]
                choices[index] = {**choice, "adapters": renamed}
        return replace(self, choices=choices)


def merge(old: Json, new: Json) -> Json:
    """Put a chunk behind those before it."""
    if old is None or new is None:
        return new if old is None else old
    if isinstance(old, dict):
        return {name: merge(old.get(name), new.get(name)) for name in {**old, **new}}
    if isinstance(old, list) or (isinstance(old, str) and isinstance(new, str)):
        return old + new
    return new


def difference(found: Answer, wanted: Answer, *, is_exact: bool) -> str | None:
    """Return where an answer differs from the one that the same request got alone; None if it does not.

    Args:
        is_exact: whether the arithmetic does not depend on the batch. Otherwise only greedy tokens are compared, as
            far as rounding can't have decided.
    """
    # A client that leaves may not have seen the error yet.
    if found.status != wanted.status or (found.error != wanted.error and (found.is_complete or found.error)):
        return f"status {found.status} ({found.error}), alone {wanted.status} ({wanted.error})"
    for index, choice in found.choices.items():
        alone = wanted.choices.get(index)
        if alone is None:
            return f"choice {index} is unknown alone"
        if not is_exact:
            if (where := _first_far_token(choice, alone)) is not None:
                return f"choice {index}: token {where} differs"
        elif (path := _mismatch(choice, alone, is_complete=found.is_complete)) is not None:
            return f"choice {index}{path}"
    if found.is_complete and found.choices.keys() != wanted.choices.keys():
        return f"choices {sorted(found.choices)}, alone {sorted(wanted.choices)}"
    return None


def _mismatch(found: Json, wanted: Json, *, is_complete: bool) -> str | None:
    """Return the path to the first difference, and both values there; a part may end early if the whole did."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        for name, value in found.items():
            if (path := _mismatch(value, wanted.get(name), is_complete=is_complete)) is not None:
                return f".{name}{path}"
        return None
    if found == wanted or (not is_complete and found is None):
        return None
    has_parts = isinstance(found, list | str) and isinstance(wanted, type(found))
    if not is_complete and has_parts and wanted[: len(found)] == found:
        return None
    if isinstance(found, list) and isinstance(wanted, list) and len(found) == len(wanted):
        place = next(place for place in range(len(found)) if found[place] != wanted[place])
        return f"[{place}]: {found[place]!r}, alone {wanted[place]!r}"
    return f": {found!r}, alone {wanted!r}"


def _first_far_token(found: dict[str, Json], wanted: dict[str, Json]) -> int | None:
    """Return the first token that differs though it was clearly the likeliest; needs a completion's logprobs."""
    logprobs, alone = found.get("logprobs") or {}, wanted.get("logprobs") or {}
    tokens, others = logprobs.get("tokens") or [], alone.get("tokens") or []
    for place, (token, other) in enumerate(zip(tokens, others, strict=False)):
        if token != other:
            best = sorted((alone["top_logprobs"][place] or {}).values(), reverse=True)
            return place if len(best) > 1 and best[0] - best[1] > NEAR else None
    return None
