"""Converts argument values that a model writes as text to JSON of the types in a tool's schema."""

import ast
import json
import warnings
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Any

from server.api.core.json_text.cut_json import parse_cut

JSON_TYPES: Mapping[type, AbstractSet[str]] = {
    type(None): {"null"},
    bool: {"boolean"},
    int: {"integer", "number"},
    float: {"number"},
    dict: {"object"},
    list: {"array"},
}


def encode(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def encode_within(text: str) -> str:
    """Encode text for the inside of a JSON string."""
    return encode(text)[1:-1]


def types_of(schema: Mapping[str, Any]) -> frozenset[str]:
    """Return the JSON types that a schema allows; empty if it does not restrict them."""
    named = schema.get("type")
    types = {named} if isinstance(named, str) else set(named) if isinstance(named, list) else set()
    for key in ("anyOf", "oneOf"):
        options = schema.get(key)
        for option in options if isinstance(options, list) else ():
            if isinstance(option, dict):
                types |= types_of(option)
    options = schema.get("enum")
    if not types and isinstance(options, list) and options and all(isinstance(option, str) for option in options):
        types = {"string"}
    return frozenset(name for name in types if isinstance(name, str))


def is_text(schema: Mapping[str, Any]) -> bool:
    """Return True if the schema allows only strings."""
    return types_of(schema) == {"string"}


def typed_json(raw: str, schema: Mapping[str, Any]) -> str:
    """Convert a value to JSON: parse it if the result has an allowed type, else take it as a string."""
    types = types_of(schema)
    if types == {"string"}:
        return encode(raw)
    found = read_value(raw.strip(), reads_python=bool(types) and "string" not in types)
    if found is None or ("string" in types and not types & JSON_TYPES.get(type(found[0]), set())):
        return encode(raw)
    try:
        return encode(found[0])
    except RecursionError:
        return encode(raw)


def cut_json(raw: str, schema: Mapping[str, Any]) -> str | None:
    """Convert a value that was cut off to JSON, as far as it came; None if that is not yet of an allowed type."""
    types = types_of(schema)
    if "string" in types:
        return encode(raw)
    try:
        value, _ = parse_cut(raw.strip())
        is_allowed = not types or bool(types & JSON_TYPES.get(type(value), set()))
        return encode(value) if is_allowed else None
    except (ValueError, RecursionError):
        return None if types else encode(raw)


def read_value(text: str, *, reads_python: bool) -> tuple[object] | None:
    """Parse a text as JSON, or else as a Python literal; return None if it is neither."""
    try:
        return (json.loads(text, parse_constant=_refuse),)
    except (ValueError, RecursionError):
        if not reads_python:
            return None
    try:
        value = literal(parse_python(text))
        json.dumps(value, allow_nan=False)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return None
    return (value,)


def _refuse(name: str) -> None:
    raise ValueError(name)


def parse_python(text: str) -> ast.expr:
    """Parse a Python expression that a model wrote, without warnings about its syntax.

    Raises:
        ValueError, SyntaxError, RecursionError, MemoryError: the text is not an expression.

    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        return ast.parse(text, mode="eval").body


def literal(node: ast.expr) -> object:
    """Evaluate a Python literal that may also contain JSON's ``true``, ``false`` and ``null``.

    Raises:
        ValueError, TypeError: the expression is not a literal.

    """
    match node:
        case ast.Name("true"):
            return True
        case ast.Name("false"):
            return False
        case ast.Name("null"):
            return None
        case ast.List(elts) | ast.Tuple(elts):
            return [literal(element) for element in elts]
        case ast.Dict(keys, values) if None not in keys:
            pairs = zip(keys, values, strict=True)
            return {str(literal(key)): literal(value) for key, value in pairs if key is not None}
        case _:
            return ast.literal_eval(node)
