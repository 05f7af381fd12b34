"""Messages for invalid request bodies: one sentence for the first problem."""

from collections.abc import Sequence
from reprlib import Repr
from typing import Any

NOT_AN_OBJECT = "The body must be a JSON object, sent as application/json."

_repr = Repr()
_repr.maxlevel = 2
_repr.maxstring = _repr.maxother = 60


def first_problem(errors: Sequence[dict[str, Any]]) -> tuple[str, str | None]:
    """Return the message and the ``param`` for the first of pydantic's errors.

    The server's own validators say what a value must be ("must not be empty"); the field's name is put before it.
    """
    error = errors[0]
    param = _param(error["loc"])
    if error["type"] == "json_invalid":
        return f"The body is not valid JSON: {error['ctx']['error']} at character {error['loc'][-1]}.", None
    if param is None:
        return NOT_AN_OBJECT, None
    match error["type"]:
        case "missing":
            complaint = "is required"
        case "value_error":
            complaint = str(error["ctx"]["error"])
        case "too_short":  # all lists with a minimum length have 1
            complaint = "must not be empty"
        case "too_long":
            complaint = f"must hold at most {error['ctx']['max_length']} items"
        case _:
            return f"'{param}': {_decapitalise(error['msg'])}, got {quote(error['input'])}.", param
    return f"'{param}' {complaint}.", param


def quote(value: object) -> str:
    """Format a value for a message or a log line: short, printable, on one line."""
    return _repr.repr(value)


def _decapitalise(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:]


def _param(loc: Sequence[str | int]) -> str | None:
    """Turn ``("body", "messages", 0, "role")`` into ``messages[0].role``; return None for the body itself."""
    path = ""
    for step in loc[1:]:
        path += f"[{step}]" if isinstance(step, int) else f".{step}"
    return path.removeprefix(".") or None
