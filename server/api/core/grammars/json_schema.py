"""JSON schemas of clients: limits on their size, and their form for grammars."""

import json
import math
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any

from server.api.core.errors.validation import quote
from server.api.core.grammars.closed_objects import BY_NAME, LITERAL, close_objects
from server.api.core.grammars.local_references import local_references
from server.api.core.grammars.recursive_references import separate_references
from server.api.core.grammars.relaxed_schema import relax

MAX_SCHEMA_BYTES = 1 << 17
MAX_DEPTH = 64  # nesting of values
MAX_VALUES = 10_000
MAX_PROPERTIES = 1_000  # properties of one object: each decoding step checks all that may come next
MAX_REMAINDERS = 10_000  # ``multipleOf`` is enforced by tracking the remainder, digit by digit

# One line, as OpenAI's structured outputs. At most one space may follow a comma or a colon: some models would otherwise
# write white space without end.
WHITE_SPACE = {
    "whitespace_flexible": False,
    "whitespace_pattern": None,
    "item_separator": ", ?",
    "key_separator": ": ?",
}

# Other formats, such as "password" or "uri-reference", are treated as annotations, as JSON Schema allows.
FOLLOWED_FORMATS = {"date-time", "date", "time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"}

# OpenAPI's keywords that do not restrict a value; ``relax`` reads the first. llguidance would take them for one more
# schema of the value, which it refuses beside a recursive reference or ``anyOf``.
ANNOTATIONS = {"discriminator", "deprecated", "example", "externalDocs", "nullable", "xml"}


def check_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema if it is within the limits; fast for any input.

    Raises:
        ValueError: the schema exceeds a limit; the message says what it must be.

    """
    multiples: set[Decimal] = set()
    for value in _values(schema):
        if isinstance(value, dict):
            properties, multiple = value.get("properties"), value.get("multipleOf")
            if isinstance(properties, dict) and len(properties) > MAX_PROPERTIES:
                raise ValueError(f"must not have more than {MAX_PROPERTIES} properties in one object")
            if isinstance(multiple, int | float) and multiple > 0:
                multiples.add(Decimal(str(multiple)))
    if _num_remainders(multiples) > MAX_REMAINDERS:
        raise ValueError("must have values of 'multipleOf' with fewer digits")
    return schema


def check_references(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a checked schema if it holds all schemas that it refers to.

    Raises:
        MissingSchemaError: it does not.

    """
    local_references(schema)
    return schema


def check_strict(schema: Mapping[str, Any], name: str) -> None:
    """Refuse a checked schema that must be followed exactly, if no grammar can.

    Raises:
        ValueError: it has a keyword that no grammar enforces, or refers to a schema that it does not hold; the message
            names it and, of a keyword, ``name``, the schema's owner.

    """
    losses = relax(local_references(dict(schema))).losses
    if losses:
        raise ValueError(
            f"can't be strict: no grammar enforces {losses[0]} in the schema of {quote(name)}; "
            "leave that keyword out, or set 'strict' to false"
        )


def schema_text(schema: Mapping[str, Any]) -> str:
    """Encode a checked schema for a ``GrammarSpec`` or for Lark's ``%json``.

    It has only keywords that a grammar can follow; its objects are closed, and its white space is bounded.

    Raises:
        MissingSchemaError: it refers to a schema that it does not hold.

    """
    options = schema.get("x-guidance")
    own = options if isinstance(options, dict) else {}
    followed = separate_references(close_objects(_without_annotations(relax(local_references(dict(schema))).schema)))
    return json.dumps({**followed, "x-guidance": {**own, **WHITE_SPACE}}, separators=(",", ":"))


def _without_annotations(value: Any, *, are_names: bool = False) -> Any:
    """Remove formats and keywords that are not enforced, from a schema or from schemas by name."""
    if isinstance(value, list):
        return [_without_annotations(member) for member in value]
    if not isinstance(value, dict):
        return value
    if are_names:
        return {name: _without_annotations(member) for name, member in value.items()}
    return {
        name: member if name in LITERAL else _without_annotations(member, are_names=name in BY_NAME)
        for name, member in value.items()
        if not _is_annotation(name, member)
    }


def _is_annotation(name: str, member: Any) -> bool:
    if name == "format":
        return isinstance(member, str) and member not in FOLLOWED_FORMATS
    return name in ANNOTATIONS or name.startswith("x-")


def _values(schema: dict[str, Any]) -> Iterator[Any]:
    """Yield every value, the schema first. Raises ValueError if they are too many, too long or too deep."""
    num_values = num_characters = 0
    left: list[tuple[int, Any]] = [(1, schema)]
    while left:
        depth, value = left.pop()
        if depth > MAX_DEPTH:
            raise ValueError(f"must not be nested deeper than {MAX_DEPTH} levels")
        num_values += len(value) if isinstance(value, dict | list) else 0
        num_characters += len(value) if isinstance(value, str) else 0
        if num_values <= MAX_VALUES and isinstance(value, dict):
            num_characters += sum(map(len, value))
            left.extend((depth + 1, member) for member in value.values())
        elif num_values <= MAX_VALUES and isinstance(value, list):
            left.extend((depth + 1, member) for member in value)
        if num_values > MAX_VALUES or num_characters > MAX_SCHEMA_BYTES:
            raise ValueError(f"must not hold more than {MAX_SCHEMA_BYTES >> 10} KiB, or more than {MAX_VALUES} values")
        yield value


def _num_remainders(multiples: set[Decimal]) -> int:
    """Return the least common multiple, in units of the last decimal place."""
    places = max((-int(multiple.normalize().as_tuple().exponent) for multiple in multiples), default=0)
    return math.lcm(*(int(multiple.scaleb(max(places, 0))) for multiple in multiples))
