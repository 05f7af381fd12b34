"""A timed trace: what clients and an administrator do to one server, and when."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

Event = dict[str, Any]  # "after": seconds since the event before; "do": the kind; the rest depends on the kind

FOLDER = Path(__file__).parent / "traces"  # failures that were found and mended


@dataclass(frozen=True)
class Trace:
    """A model, the settings of its server, and events in their order."""

    family: str
    seed: int
    settings: dict[str, Any]
    events: list[Event]

    def to_json(self, finding: str = "") -> str:
        """Return it as text, an event a line.

        Args:
            finding: what it once showed.
        """
        content = asdict(self) | {"finding": finding}
        lines = ",\n  ".join(json.dumps(event) for event in content.pop("events"))
        return f'{json.dumps(content, indent=1)[:-2]},\n "events": [\n  {lines}\n ]\n}}\n'

    @classmethod
    def read(cls, path: Path) -> Trace:
        content = json.loads(path.read_text("utf-8"))
        return cls(content["family"], content["seed"], content["settings"], content["events"])
