"""Proves that the branches of a ``oneOf`` exclude each other, so that one of them is the same as any of them.

The texts in question are those that the grammar of the schema allows, whose objects are closed
(``server.api.core.grammars.closed_objects``). A proof looks at types, at constants (also those of a required property,
such as a discriminator), and at required properties that the other branch does not name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from server.api.core.grammars.closed_objects import ALTERNATIVES, BY_NAME, LITERAL, Schema, find_schema

MAX_READ = 10_000  # schemas read and compared for the proofs of one root; beyond it nothing more is proved
MAX_REFERENCES = 32  # that follow one another
JSON_TYPES: Mapping[type, str] = {
    type(None): "null",
    bool: "boolean",
    int: "integer",
    float: "number",
    str: "string",
    list: "array",
    dict: "object",
}
ALL_TYPES = frozenset(JSON_TYPES.values())


@dataclass(frozen=True)
class Shape:
    """A schema without alternatives, as far as proofs need it.

    Args:
        types: the types that it allows.
        values: the scalars that it allows; None if it has no constants.
        properties: the schemas of each property that it names.
        required: the properties that it requires.
        is_closed: it refuses all other properties itself.
        stays_open: its object is not closed in the grammar.

    """

    types: frozenset[str] = ALL_TYPES
    values: frozenset[Any] | None = None
    properties: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    required: frozenset[str] = frozenset()
    is_closed: bool = False
    stays_open: bool = False

    def __and__(self, other: Shape) -> Shape:
        names = {*self.properties, *other.properties}
        both = None if self.values is None else self.values if other.values is None else self.values & other.values
        return Shape(
            self.types & other.types,
            other.values if self.values is None else both,
            {name: (*self.properties.get(name, ()), *other.properties.get(name, ())) for name in names},
            self.required | other.required,
            self.is_closed or other.is_closed,
            self.stays_open or other.stays_open,
        )


class ExclusiveBranches:
    """Proofs about the schemas within one root."""

    def __init__(self, root: Schema) -> None:
        self._root = root
        self._num_read = 0
        self._values: dict[tuple[int, str], list[Shape]] = {}  # of properties, by the shape that has them
        self._closes_alone = not any(map(_joins_objects, schemas_of(root)))

    def exclude_each_other(self, schema: Schema) -> bool:
        """Return True if it is certain that no text follows two branches of the schema's ``oneOf``."""
        rest = {key: value for key, value in schema.items() if key != "oneOf"}
        branches = [{"allOf": [rest, branch]} for branch in schema["oneOf"]]
        try:
            shapes = [list(self._shapes(branch)) for branch in branches]
            return all(
                self._are_apart(one, other) or (self._excludes(one, other) and self._excludes(other, one))
                for ones, others in combinations(shapes, 2)
                for one in ones
                for other in others
            )
        except _TooManyError:
            return False
        finally:
            self._values.clear()

    def _are_apart(self, one: Shape, other: Shape) -> bool:
        """Return True if types or constants, also of a required property, show that no value suits both."""
        self._count()
        if _have_nothing_in_common(one, other):
            return True
        if {"object"} not in (one.types, other.types):
            return False
        named_by_both = one.properties.keys() & other.properties.keys() & (one.required | other.required)
        return any(
            all(
                _have_nothing_in_common(each, another)
                for each in self._values_of(one, name)
                for another in self._values_of(other, name)
            )
            for name in named_by_both
        )

    def _excludes(self, one: Shape, other: Shape) -> bool:
        """Return True if no text of the grammar of ``one`` has the properties that ``other`` requires and allows."""
        if {"object"} not in (one.types, other.types):
            return False
        if other.is_closed and not one.required <= other.properties.keys():
            return True
        is_closed = one.is_closed or (self._closes_alone and bool(one.properties) and not one.stays_open)
        return is_closed and not other.required <= one.properties.keys()

    def _values_of(self, shape: Shape, name: str) -> list[Shape]:
        """Return the shapes of a property's value."""
        key = (id(shape), name)
        if key not in self._values:
            self._values[key] = [*self._shapes({"allOf": [*shape.properties[name]]})]
        return self._values[key]

    def _shapes(self, schema: Any, num_references: int = 0) -> Iterator[Shape]:
        """Yield the alternatives of a schema."""
        self._count()
        if not isinstance(schema, dict):
            yield Shape(types=frozenset()) if schema is False else Shape()
            return
        found = [_own_shape(schema)]
        for parts in self._parts(schema, num_references):
            self._count(len(found) * len(parts))
            found = [each & part for each in found for part in parts]
        yield from found

    def _parts(self, schema: Schema, num_references: int) -> Iterator[list[Shape]]:
        """Yield the alternatives of each schema about the same value."""
        ref = schema.get("$ref")
        if isinstance(ref, str):
            target = find_schema(self._root, ref)
            if target is None or num_references == MAX_REFERENCES:
                raise _TooManyError
            yield list(self._shapes(target, num_references + 1))
        for member in _list(schema, "allOf"):
            yield list(self._shapes(member, num_references))
        for key in ALTERNATIVES:
            if members := _list(schema, key):
                yield [shape for member in members for shape in self._shapes(member, num_references)]

    def _count(self, number: int = 1) -> None:
        self._num_read += number
        if self._num_read > MAX_READ:
            raise _TooManyError


class _TooManyError(Exception):
    """A proof would take too long."""


def schemas_of(schema: Any, *, are_names: bool = False) -> Iterator[Schema]:
    """Yield a schema and all schemas within it."""
    if isinstance(schema, list):
        for member in schema:
            yield from schemas_of(member)
    if isinstance(schema, dict):
        if not are_names:
            yield schema
        for key, member in schema.items():
            if are_names or key not in LITERAL:
                yield from schemas_of(member, are_names=not are_names and key in BY_NAME)


def _own_shape(schema: Schema) -> Shape:
    """Return the shape of a schema without the schemas that it is combined with."""
    constants = schema.get("enum") if isinstance(schema.get("enum"), list) else None
    if "const" in schema:
        constants = [schema["const"]]
    properties, required = schema.get("properties"), schema.get("required")
    is_closed = False in (schema.get("additionalProperties"), schema.get("unevaluatedProperties"))
    has_patterns = bool(schema.get("patternProperties"))
    return Shape(
        _types(schema, constants),
        None if constants is None or not all(map(_is_scalar, constants)) else frozenset(map(_comparable, constants)),
        {name: (each,) for name, each in properties.items()} if isinstance(properties, dict) else {},
        frozenset(filter(_is_text, required)) if isinstance(required, list) else frozenset(),
        is_closed and not has_patterns,
        has_patterns or schema.get("additionalProperties", False) is not False,
    )


def _types(schema: Schema, constants: Iterable[Any] | None) -> frozenset[str]:
    named = schema.get("type")
    types = frozenset({named} if isinstance(named, str) else filter(_is_text, _list(schema, "type"))) or ALL_TYPES
    if "number" in types:
        types |= {"integer"}
    return types if constants is None else types & {name for value in constants for name in _types_of(value)}


def _types_of(value: Any) -> tuple[str, ...]:
    name = JSON_TYPES[type(value)]
    return ("number", "integer") if name in ("number", "integer") else (name,)


def _have_nothing_in_common(one: Shape, other: Shape) -> bool:
    """Return True if types or constants show that no value suits both."""
    have_values = one.values is not None and other.values is not None
    return not one.types & other.types or (
        have_values and not (one.values or frozenset()) & (other.values or frozenset())
    )


def _joins_objects(schema: Schema) -> bool:
    """Return True if the object of a schema is closed together with those of other schemas."""
    in_place = [key for key in (*ALTERNATIVES, "$ref") if key in schema]
    num_all = len(_list(schema, "allOf"))
    return num_all > 1 or len(in_place) + num_all > 1 or ("$ref" in schema and "properties" in schema)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_scalar(value: Any) -> bool:
    return not isinstance(value, list | dict)


def _comparable(value: Any) -> Any:
    """Return a value by which equal scalars of JSON are equal, and others not."""
    return (isinstance(value, bool), value)


def _list(schema: Schema, key: str) -> list[Any]:
    value = schema.get(key)
    return value if isinstance(value, list) else []
