"""Other values for settings of a config."""

from __future__ import annotations

import copy
import json
import math
import random
from dataclasses import dataclass
from typing import Any

from server.model.checkpoint.number_ranges import range_of
from tests.fuzz.configs.subjects import Path_, leaves

WHOLE = (0, -1, 1, 2, 3, 7, 1 << 10, 1 << 16, 100_000_000, 1 << 31, (1 << 63) - 1, 1 << 200, -(1 << 40))
BROKEN = (0.0, -1.0, 0.5, 1e-308, 1e-30, 1e8, 1e30, 1e308, -1e308, math.nan, math.inf, -math.inf)
OTHERS: tuple[Any, ...] = (True, False, None, "7", "none", [], {}, [0], [math.nan])
REMOVED = "removed"  # instead of a value


@dataclass(frozen=True)
class Mutation:
    """Another value of one setting, or of two."""

    changes: tuple[tuple[Path_, Any], ...]

    def apply(self, values: dict[str, Any]) -> dict[str, Any]:
        """Return changed values."""
        changed = copy.deepcopy(values)
        for path, value in self.changes:
            place: Any = changed
            for key in path[:-1]:
                place = place[key]
            if value == REMOVED and isinstance(place, dict):
                place.pop(path[-1], None)
            else:
                place[path[-1]] = value
        return changed

    def __str__(self) -> str:
        return json.dumps([[list(path), value] for path, value in self.changes])

    @classmethod
    def read(cls, text: str) -> Mutation:
        return cls(tuple((tuple(path), value) for path, value in json.loads(text)))


def mutate(values: dict[str, Any], source: random.Random) -> Mutation:
    """Change a number, mostly; sometimes a text or a list, sometimes two settings."""
    found = [(path, value) for path, value in leaves(values) if path]
    numbers = [(path, value) for path, value in found if isinstance(value, int | float)]
    count = 2 if source.random() < 0.15 else 1
    chosen = [source.choice(numbers if source.random() < 0.85 else found) for _ in range(count)]
    paths = {path: _other(_name(path), value, source) for path, value in chosen}
    first = max(paths, key=len)  # a list may hold the other's place
    others = {
        path: value for path, value in paths.items() if path[: len(first)] != first and first[: len(path)] != path
    }
    return Mutation(tuple({first: paths[first], **others}.items()))


def _name(path: Path_) -> str:
    """Return the name of a setting as the table of ranges has it."""
    name = next(key for key in reversed(path) if isinstance(key, str))
    return name.partition(".")[2] if "." in name else name


def _other(name: str, value: Any, source: random.Random) -> Any:
    kind, numbers = source.random(), range_of(name)
    if numbers is not None and source.random() < 0.4:  # the ends of its range
        end = source.choice([numbers.least, numbers.most])
        return int(end) if isinstance(value, int) else end
    if isinstance(value, int | float) and kind < 0.15:
        return source.choice([value + 1, value - 1, value * 2, value * 1000, -value])
    if kind < 0.25:
        return source.choice([*OTHERS, REMOVED])
    if isinstance(value, list) and kind < 0.6:
        return source.choice([value * 2, value[1:], value[:1] * len(value)])
    return source.choice(BROKEN if isinstance(value, float) and kind < 0.7 else WHOLE)
