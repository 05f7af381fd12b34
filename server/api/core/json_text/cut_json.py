"""JSON that ``max_tokens`` may have cut off."""

import json

from pydantic_core import from_json


def parse_cut(text: str) -> tuple[object, bool]:
    """Parse JSON as far as it came, and tell whether it was cut off; open strings, lists and objects end there.

    Raises:
        ValueError: the text is not the beginning of a JSON value.
        RecursionError: it has too many levels.

    """
    try:
        return json.loads(text), False
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":  # from_json would ignore it
            raise
        try:
            return from_json(text, allow_partial="trailing-strings"), True
        except ValueError:
            raise error from None
