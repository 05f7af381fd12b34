"""Sampling parameters of the chat: their names, and the values that they take."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_limit(value: Any) -> bool:
    return _is_integer(value) and value >= 0


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_stop(value: Any) -> bool:
    return _is_text(value) or (isinstance(value, list) and all(map(_is_text, value)))


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


MAX_TOKENS = 1024  # of an answer, unless the user sets another limit or none
ROUTING_METHODS = ("embedding", "arrow")  # known ones; the server checks them

# Each kind of value, with its name in error messages. The server checks the range.
NUMBER = (_is_number, "a number, such as 0.7")
INTEGER = (_is_integer, "a whole number, such as 64")
LIMIT = (_is_limit, "a whole number, such as 64, or 0 for no limit")
SWITCH = (lambda value: isinstance(value, bool), "true or false")
TEXT = (_is_text, "a word")
STOP = (_is_stop, 'a text, or a JSON list of texts, such as ["\\n", "END"]')
ROUTING = (_is_object, 'a method, such as arrow, or a JSON object, such as {"method": "arrow", "top_k": 2}')

KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "temperature": NUMBER,
    "top_p": NUMBER,
    "top_k": INTEGER,
    "min_p": NUMBER,
    "max_tokens": LIMIT,
    "min_tokens": INTEGER,
    "presence_penalty": NUMBER,
    "frequency_penalty": NUMBER,
    "repetition_penalty": NUMBER,
    "seed": INTEGER,
    "stop": STOP,
    "ignore_eos": SWITCH,
    "reasoning_effort": TEXT,
    "routing": ROUTING,
    "priority": INTEGER,
    "timeout": NUMBER,
}


class ParameterError(ValueError):
    """A parameter is unknown, or has a value of the wrong kind; the message says which."""


def check_name(name: str) -> None:
    """Check that a parameter exists.

    Raises:
        ParameterError: It does not.
    """
    if name not in KINDS:
        raise ParameterError(f"unknown parameter {name}; available: {', '.join(KINDS)}")


def check_parameter(name: str, value: Any) -> None:
    """Check a parameter and the kind of its value.

    Raises:
        ParameterError: The parameter is unknown, or the value is of another kind.
    """
    check_name(name)
    is_valid, kind = KINDS[name]
    if not is_valid(value):
        raise ParameterError(f"{name} must be {kind}, not {value}")


def parse_parameter(name: str, text: str) -> Any:
    """Parse the text of a parameter's value: JSON, or a plain text where the parameter takes one.

    Raises:
        ParameterError: The parameter is unknown, or the value is of another kind.
    """
    check_name(name)
    value = _parse(text)
    takes_text = KINDS[name] in (TEXT, STOP)
    value = text if takes_text and not KINDS[name][0](value) else value
    value = {"method": value} if KINDS[name] is ROUTING and isinstance(value, str) else value
    check_parameter(name, value)
    return value


def value_text(value: Any) -> str:
    """Return the text that `/set` takes for a value."""
    if not isinstance(value, dict):
        return str(value)
    return str(value["method"]) if value.keys() == {"method"} else json.dumps(value)


def parse_weight(text: str) -> float:
    """Parse the weight of an adapter; the server checks the range.

    Raises:
        ParameterError: The text is no finite number.
    """
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not math.isfinite(weight):
        raise ParameterError(f"the weight of an adapter must be a number, such as 0.5, not {text}")
    return weight


def _parse(text: str) -> Any:
    try:
        value = json.loads(text)
        json.dumps(value, allow_nan=False)
    except (ValueError, RecursionError):
        return text
    return value
