"""Closes the objects of a JSON schema, as structured output in vLLM does: they have no properties but those it names.

An object stays open if ``additionalProperties`` says so, or if nothing about it names any property. Objects that are
described by several schemas together (``allOf``, or ``anyOf`` beside ``properties``) are closed as a whole, because
each of these schemas alone would refuse the properties of the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

Schema = dict[str, Any]

BY_NAME = {"properties", "patternProperties", "$defs", "definitions"}  # their keys are names, not keywords
LITERAL = {"const", "enum", "default", "examples"}  # their values are not schemas
ALTERNATIVES = ("anyOf", "oneOf")
IN_PLACE = (*ALTERNATIVES, "allOf", "$ref")  # their schemas are about the same value
MAX_ADDED = 20_000  # names that are repeated in a schema, and schemas read for them; beyond it objects stay open


@dataclass(frozen=True)
class Names:
    """Names and patterns of an object's properties."""

    properties: frozenset[str] = frozenset()
    patterns: frozenset[str] = frozenset()

    def __or__(self, other: Names) -> Names:
        return Names(self.properties | other.properties, self.patterns | other.patterns)

    def __len__(self) -> int:
        return len(self.properties) + len(self.patterns)

    def only(self) -> Schema:
        """Return the schema of objects that have no other properties."""
        closed: Schema = {"properties": dict.fromkeys(sorted(self.properties), True), "additionalProperties": False}
        return closed | ({"patternProperties": dict.fromkeys(sorted(self.patterns), True)} if self.patterns else {})


NONE = Names()


def close_objects(schema: Mapping[str, Any]) -> Schema:
    """Return a schema in which every object is closed that the schema does not open."""
    return _Closer(dict(schema)).result()


class _Closer:
    def __init__(self, root: Schema) -> None:
        self._root = root
        self._copies: dict[str, str] = {}  # references, and the names of the open copies of what they refer to
        self._left: list[str] = []  # references whose copies are not made yet
        self._num_added = self._num_read = 0

    def result(self) -> Schema:
        closed: Schema = self._closed(self._root, NONE)
        copies: Schema = {}
        while self._left:  # a copy may refer to others
            ref = self._left.pop()
            target = self._resolve(ref) or {}
            own = {key: value for key, value in target.items() if key not in ("$defs", "definitions", "$id")}
            copies[self._copies[ref]] = self._open(own)
        return with_definitions(closed, copies)

    def _closed(self, schema: Any, others: Names) -> Any:
        """Close a schema; its object may have ``others`` besides its own properties."""
        if not isinstance(schema, dict):
            return schema
        in_place = [key for key in IN_PLACE if key in schema]
        if not in_place:
            return self._closed_object(schema, others)
        is_alone = len(in_place) == 1 and len(_members(schema, in_place[0])) == 1
        if not _own_names(schema) and not others and (is_alone or in_place in (["anyOf"], ["oneOf"])):
            return self._mapped(schema, lambda member: self._closed(member, NONE), str)
        alternatives = next((key for key in ALTERNATIVES if isinstance(schema.get(key), list)), None)
        rest = {key: value for key, value in schema.items() if key != alternatives}
        names = self._names(rest)
        if names is None:
            return self._open(schema)
        names |= others
        if alternatives is not None:
            return {**self._open(rest), alternatives: [self._closed(each, names) for each in schema[alternatives]]}
        return self._with_only(names, self._open(schema))

    def _closed_object(self, schema: Schema, others: Names) -> Schema:
        opened: Schema = self._open(schema)
        if "additionalProperties" in schema:
            return opened
        if others:
            return self._with_only(_own_names(schema) | others, opened)
        names_any = "properties" in schema or "patternProperties" in schema
        return {**opened, "additionalProperties": False} if names_any else opened

    def _with_only(self, names: Names, schema: Schema) -> Schema:
        """Add to a schema that its object has no other properties than ``names``; nothing if there are none."""
        self._num_added += len(names)
        if not names or self._num_added > MAX_ADDED:
            return schema
        return {**schema, "allOf": [*_members(schema, "allOf"), names.only()]}

    def _open(self, schema: Any) -> Any:
        """Close the objects within an object, but not itself."""
        return self._mapped(schema, self._open, self._open_reference) if isinstance(schema, dict) else schema

    def _mapped(self, schema: Schema, in_place: Callable[[Any], Any], reference: Callable[[str], str]) -> Schema:
        """Convert the members of a schema.

        Args:
            in_place: converts schemas about the same value.
            reference: converts the reference to one.

        """
        result: Schema = {}
        for key, value in schema.items():
            if key in LITERAL:
                result[key] = value
            elif key == "$ref" and isinstance(value, str):
                result[key] = reference(value)
            elif key in BY_NAME and isinstance(value, dict):
                result[key] = {name: self._closed(member, NONE) for name, member in value.items()}
            elif key in IN_PLACE and isinstance(value, list):
                result[key] = [in_place(member) for member in value]
            elif isinstance(value, list):
                result[key] = [self._closed(member, NONE) for member in value]
            else:
                result[key] = self._closed(value, NONE)
        return result

    def _open_reference(self, ref: str) -> str:
        """Return a reference to an open copy of what ``ref`` refers to."""
        if self._resolve(ref) is None:
            return ref
        if ref not in self._copies:
            self._left.append(ref)
            self._copies[ref] = f"open-{len(self._copies)}"
        return f"#/$defs/{self._copies[ref]}"

    def _names(self, schema: Schema) -> Names | None:
        """Return the names of an object's properties; None if it is open, or if they can't be told."""
        properties, patterns, seen, left = set[str](), set[str](), set[str](), [schema]
        while left:
            each = left.pop()
            self._num_read += 1
            if each.get("additionalProperties", False) is not False or self._num_read > MAX_ADDED:
                return None
            own = _own_names(each)
            properties |= own.properties
            patterns |= own.patterns
            ref = each.get("$ref")
            if isinstance(ref, str) and ref not in seen:
                seen.add(ref)
                target = self._resolve(ref)
                if target is None:
                    return None
                left.append(target)
            for key in (*ALTERNATIVES, "allOf"):
                left.extend(member for member in _members(each, key) if isinstance(member, dict))
        return Names(frozenset(properties), frozenset(patterns))

    def _resolve(self, ref: str) -> Schema | None:
        return find_schema(self._root, ref)


def with_definitions(schema: Schema, added: Schema) -> Schema:
    """Return a schema with more definitions."""
    own = schema.get("$defs")
    return schema | {"$defs": {**(own if isinstance(own, dict) else {}), **added}} if added else schema


def find_schema(root: Schema, ref: str) -> Schema | None:
    """Return the schema that a reference within the root names, or None if there is none."""
    if not ref.startswith("#"):
        return None
    found: Any = root
    for step in steps_of(ref):
        if isinstance(found, list):
            found = {str(index): each for index, each in enumerate(found)}
        found = found.get(step) if isinstance(found, dict) else None
    return found if isinstance(found, dict) else None


def steps_of(ref: str) -> Iterator[str]:
    """Yield the keys and indices on the way from the root to what a reference within it names."""
    return (unquote(step).replace("~1", "/").replace("~0", "~") for step in ref.removeprefix("#").split("/")[1:])


def _own_names(schema: Schema) -> Names:
    named, patterned = schema.get("properties"), schema.get("patternProperties")
    return Names(
        frozenset(named if isinstance(named, dict) else ()), frozenset(patterned if isinstance(patterned, dict) else ())
    )


def _members(schema: Schema, key: str) -> list[Any]:
    value = schema.get(key, [])
    return value if isinstance(value, list) else [value]
