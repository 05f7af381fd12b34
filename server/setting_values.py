"""Values of settings that are more than a number or a word, read from what a user wrote."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import isfinite
from pathlib import Path
from typing import Any

UNITS = {"": 1, "B": 1} | {
    f"{letter}{unit}": base**power
    for power, letter in enumerate("KMGT", start=1)
    for unit, base in (("B", 1000), ("IB", 1024))
}
RATE_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}
# The sampling parameters that have defaults for all requests, as in vLLM, and their ranges.
SAMPLING_RANGES = {
    "temperature": (0, 2),
    "top_p": (1e-6, 1),
    "top_k": (0, 2**31 - 1),
    "min_p": (0, 1),
    "repetition_penalty": (0.01, 2),
}
STOPS = "stop_strings"  # texts that end a completion, in generation_config.json
MAX_NEW_TOKENS = "max_new_tokens"  # a limit for all requests
MAX_TEMPLATE_BYTES = 1 << 20
GENERATION_FILE = "generation_config.json"


@dataclass(frozen=True)
class Budget:
    """A memory budget: ``auto``, a number of bytes, or a share of a total. ``str`` gives it as the user wrote it."""

    text: str
    nbytes: int | None = None
    share: float | None = None  # 0 to 1

    def __str__(self) -> str:
        return self.text

    @property
    def is_auto(self) -> bool:
        return self.nbytes is None and self.share is None

    def resolve(self, total: int, auto: int) -> int:
        """Return the budget in bytes.

        Args:
            total: bytes of which the budget may be a share.
            auto: bytes to return for ``auto``.
        """
        if self.nbytes is not None:
            return self.nbytes
        return auto if self.share is None else int(self.share * total)


AUTO = Budget("auto")


@dataclass(frozen=True)
class Rate:
    """A number of requests in a number of seconds."""

    num_requests: int
    seconds: float


@dataclass(frozen=True)
class ModelAlias:
    """Another name under which a model answers; it may be a shell-style pattern. ``str`` gives it as the user wrote it.

    Args:
        model: the name of the model.
    """

    name: str
    model: str

    def __str__(self) -> str:
        return f"{self.name}={self.model}"

    @property
    def is_pattern(self) -> bool:
        return any(character in self.name for character in "*?[")

    def matches(self, name: str) -> bool:
        return name == self.name or fnmatchcase(name, self.name)


@dataclass(frozen=True)
class NamedPath:
    """A path and the name of what is there. ``str`` gives it as the user wrote it."""

    name: str
    path: str

    def __str__(self) -> str:
        return f"{self.name}={self.path}"


def parse_budget(text: str) -> Budget:
    """Parse ``auto``, ``6GiB``, ``512MB``, ``1000000`` or ``50%``.

    Raises:
        ValueError: the text has none of these forms.
    """
    if text == "auto":
        return AUTO
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(%|[KMGT]i?B|B)?", text, re.IGNORECASE)
    if match is None or not isfinite(float(match.group(1))):
        raise ValueError(f"{text!r} is not a size; write it as 6GiB, 50% or auto")
    number, unit = float(match.group(1)), (match.group(2) or "").upper()
    if unit == "%":
        if number > 100:  # noqa: PLR2004
            raise ValueError(f"{text!r} is too much; the most is 100%")
        return Budget(text, share=number / 100)
    return Budget(text, nbytes=int(number * UNITS[unit]))


def parse_rate(text: str) -> Rate:
    """Parse ``60/m``, 60 requests in 60 seconds; ``s``, ``m`` and ``h`` are a second, a minute, an hour.

    Raises:
        ValueError: the text has another form.
    """
    match = re.fullmatch(r"([1-9]\d{0,8})/([smh])", text)
    if match is None:
        raise ValueError("write requests per second, minute or hour, such as 60/m")
    return Rate(int(match[1]), RATE_SECONDS[match[2]])


def parse_alias(text: str) -> ModelAlias:
    """Parse ``NAME=MODEL``.

    Raises:
        ValueError: a part is missing.
    """
    return ModelAlias(*_parse_pair(text, "NAME=MODEL, such as claude-*=greenroom-demo"))


def parse_named_path(text: str) -> NamedPath:
    """Parse ``NAME=PATH``.

    Raises:
        ValueError: a part is missing.
    """
    return NamedPath(*_parse_pair(text, "NAME=PATH, such as law=adapters/law"))


def _parse_pair(text: str, form: str) -> tuple[str, str]:
    name, _, value = (part.strip() for part in text.partition("="))
    if not name or not value:
        raise ValueError(f"write {form}")
    return name, value


def check_key(key: str) -> None:
    """Check that an HTTP header can carry a key. The error message does not repeat the key.

    Raises:
        ValueError: the key is empty, or has characters other than visible ASCII.
    """
    if not re.fullmatch(r"[!-~]+", key):
        raise ValueError("a key must have visible ASCII characters only, and at least one")


def parse_template(text: str) -> str:
    """Return a chat template: the text itself if it has braces, else what is in the file of that name.

    In a template on one line, a backslash and an n stand for a line break.

    Raises:
        ValueError: there is no such file, or it holds no text.
    """
    if any(character in text for character in "{}\n"):
        return text.replace("\\n", "\n")
    path = Path(text)
    try:
        if path.stat().st_size > MAX_TEMPLATE_BYTES:
            raise ValueError(f"the file has more than {MAX_TEMPLATE_BYTES >> 20} MiB; give one with a chat template")
        template = path.read_text("utf-8")
    except UnicodeDecodeError:
        raise ValueError("the file is not UTF-8 text; give one with a Jinja template") from None
    except OSError as error:
        raise ValueError(f"{error.strerror}; give a file with a Jinja template, or the template itself") from None
    if not template.strip():
        raise ValueError("the file is empty; give one with a Jinja template")
    return template


def check_sampling(values: Mapping[str, Any]) -> None:
    """Check default values of sampling parameters.

    Raises:
        ValueError: a value is out of range; the message names it.
    """
    for name, (low, high) in SAMPLING_RANGES.items():
        value = values.get(name, low)
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise ValueError(f"{name} is {value!r}, not a number from {low} to {high}")
    if values.get("top_k", 0) != int(values.get("top_k", 0)):
        raise ValueError(f"top_k is {values['top_k']!r}, not a whole number")
    limit = values.get(MAX_NEW_TOKENS, 1)
    if type(limit) is not int or limit < 1:
        raise ValueError(f"{MAX_NEW_TOKENS} is {limit!r}, not a number of tokens above 0")
