"""A task for a tool: a question, the tool that serves it, the arguments of the call, its result and the answer."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

MAX_RESULT = 180  # characters
MAX_VALUE = 48  # characters of an argument from the corpus

Json = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """One question and what a tool has to do with it."""

    kind: str
    tool: Json  # in OpenAI's form
    user: str
    arguments: Json
    result: str
    answer: str

    @property
    def name(self) -> str:
        return str(self.tool["function"]["name"])


def happens(rng: random.Random, probability: float) -> bool:
    return rng.random() < probability


def make_tool(rng: random.Random, names: str, description: str, properties: Json, required: list[str]) -> Json:
    """Return a tool in the order of fields that the server shows; its name is one of ``names``, in varied styles."""
    name = rng.choice(names.split())
    if happens(rng, 0.15):
        first, *rest = name.split("_")
        name = first + "".join(part.capitalize() for part in rest)
    shown = {
        key: value if happens(rng, 0.5) or "enum" in value else {k: v for k, v in value.items() if k != "description"}
        for key, value in properties.items()
    }
    parameters: Json = {"type": "object", "properties": shown, "required": required}
    if happens(rng, 0.1):
        parameters["additionalProperties"] = False
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


def text(description: str) -> Json:
    return {"type": "string", "description": description}


def one_of(values: tuple[str, ...]) -> Json:
    return {"type": "string", "enum": list(values)}


def shorten(passage: str, limit: int = MAX_RESULT) -> str:
    """Return the first sentences of a passage, in one line."""
    line = " ".join(passage.split())
    if len(line) <= limit:
        return line
    cut = line[:limit]
    sentence = max(cut.rfind(". "), cut.rfind("; "))
    return cut[: sentence + 1] if sentence > limit // 4 else cut.rsplit(" ", 1)[0] + " ..."


def usable(value: str) -> bool:
    return 1 < len(value) <= MAX_VALUE and '"' not in value and "\\" not in value and value.isascii()
