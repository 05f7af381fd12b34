"""Separates recursive references of a JSON schema from the keywords beside them.

llguidance joins ``{"$ref": ..., "required": [...]}`` with the schema it refers to, and refuses that if the latter holds
the former. A reference to a copy of that schema, which has the keywords itself, says the same. Keywords beside such
references in ``anyOf`` are keywords of each branch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from server.api.core.grammars.closed_objects import BY_NAME, LITERAL, Schema, find_schema, with_definitions

# llguidance takes no notice of these beside a reference.
ANNOTATIONS = frozenset({"title", "description", "default", "examples", "$comment", "$defs", "definitions"})
MAX_READ = 100_000  # schemas read to find what is recursive; beyond it references are left as they are
MAX_COPIED = 1 << 17  # characters that are copied; once they are, references are left as they are


def separate_references(schema: Schema) -> Schema:
    """Return a schema that says the same, whose recursive references have no keywords beside them."""
    return _Separator(schema).result()


class _Separator:
    def __init__(self, root: Schema) -> None:
        self._root = root
        self._within: dict[str, set[int]] = {}  # by reference, the identities of the schemas that it leads to
        self._copies: dict[str, str] = {}  # names of the copies, by reference and keywords
        self._left: list[tuple[str, Schema]] = []  # copies whose members are not separated yet
        self._num_read = self._num_copied = 0

    def result(self) -> Schema:
        separated = self._separated(self._root)
        copies: Schema = {}
        while self._left:  # a copy may need others
            name, copy = self._left.pop()
            copies[name] = self._separated(copy)
        return with_definitions(separated, copies)

    def _separated(self, schema: Schema) -> Schema:
        schema = self._distributed(schema)
        name = self._copy(schema)
        if name is not None:
            schema = _annotations(schema) | {"$ref": f"#/$defs/{name}"}
        return {key: self._member(key, value) for key, value in schema.items()}

    def _member(self, key: str, value: Any) -> Any:
        if key in LITERAL:
            return value
        if isinstance(value, list):
            return [self._separated(member) if isinstance(member, dict) else member for member in value]
        if not isinstance(value, dict):
            return value
        return (
            {name: self._member("", member) for name, member in value.items()}
            if key in BY_NAME
            else self._separated(value)
        )

    def _distributed(self, schema: Schema) -> Schema:
        """Give the keywords beside recursive references in ``allOf`` or ``anyOf`` to what these refer to."""
        if "$ref" in schema or self._num_copied > MAX_COPIED:
            return schema
        joined, branches = _schemas(schema, "allOf"), _schemas(schema, "anyOf")
        first = next((index for index, member in enumerate(joined) if self._leads_back(member)), None)
        if first is not None:
            others = [*joined[:first], *joined[first + 1 :]]
            beside = _restrictions(schema, "allOf") | ({"allOf": others} if others else {})
            return _annotations(schema) | self._with(joined[first], beside) if beside else schema
        beside = _restrictions(schema, "anyOf")
        if not beside or not any(map(self._leads_back, branches)):
            return schema
        return _annotations(schema) | {"anyOf": [self._with(branch, beside) for branch in branches]}

    def _with(self, schema: Any, beside: Schema) -> Any:
        """Return a schema that has other keywords, too."""
        if not isinstance(schema, dict):
            return schema is not False and beside
        joined = {**schema, "allOf": [*_schemas(schema, "allOf"), beside]}
        if self._is_recursive(schema):
            return {"$ref": f"#/$defs/{self._name_copy(schema['$ref'], _restrictions(joined, '$ref'))}"}
        return self._distributed(joined)

    def _leads_back(self, schema: Any) -> bool:
        """Return True if a schema, or one that describes the same value, refers to one that holds it."""
        if not isinstance(schema, dict):
            return False
        in_place = (*_schemas(schema, "anyOf"), *_schemas(schema, "allOf"))
        return self._is_recursive(schema) or any(map(self._leads_back, in_place))

    def _copy(self, schema: Schema) -> str | None:
        """Return the name of the copy for a reference with keywords beside it; None if it needs none."""
        beside = _restrictions(schema, "$ref")
        if not beside or self._num_copied > MAX_COPIED or not self._is_recursive(schema):
            return None
        return self._name_copy(schema["$ref"], beside)

    def _is_recursive(self, schema: Schema) -> bool:
        """Return True if a schema refers to one that holds it."""
        ref = schema.get("$ref")
        target = find_schema(self._root, ref) if isinstance(ref, str) else None
        # Without the second condition, a reference to itself would be copied without end.
        return (
            isinstance(ref, str) and target is not None and "$ref" not in target and id(schema) in self._reachable(ref)
        )

    def _name_copy(self, ref: str, beside: Schema) -> str:
        """Return the name of the copy of a schema that has other keywords, too; it is made if there is none."""
        key = json.dumps([ref, beside], sort_keys=True)
        if key not in self._copies:
            target = find_schema(self._root, ref) or {}
            self._num_copied += len(json.dumps(target)) + len(key)
            self._copies[key] = name = f"separated-{len(self._copies)}"
            own = {key: value for key, value in target.items() if key not in ("$defs", "definitions", "$id", "$schema")}
            joined = own.get("allOf", [])
            self._left.append((name, {**own, "allOf": [*joined, beside]}))
        return self._copies[key]

    def _reachable(self, ref: str) -> set[int]:
        if ref not in self._within:
            found = self._within[ref] = set[int]()
            left: list[Any] = [find_schema(self._root, ref)]
            while left and self._num_read < MAX_READ:
                schema = left.pop()
                if schema is None or id(schema) in found:
                    continue
                self._num_read += 1
                found.add(id(schema))
                left.extend(_members(schema))
                if isinstance(schema.get("$ref"), str):
                    left.append(find_schema(self._root, schema["$ref"]))
        return self._within[ref]


def _restrictions(schema: Schema, beside: str) -> Schema:
    """Return the keywords beside one that restrict a value."""
    return {key: value for key, value in schema.items() if key != beside and key not in ANNOTATIONS}


def _annotations(schema: Schema) -> Schema:
    return {key: value for key, value in schema.items() if key in ANNOTATIONS}


def _schemas(schema: Schema, keyword: str) -> list[Any]:
    found = schema.get(keyword)
    return found if isinstance(found, list) else []


def _members(schema: Schema) -> Iterator[Schema]:
    """Yield the schemas within a schema, but for definitions, which count where they are referred to."""
    for key, value in schema.items():
        if key in LITERAL or key in ("$defs", "definitions"):
            continue
        members = (
            value
            if isinstance(value, list)
            else value.values()
            if key in BY_NAME and isinstance(value, dict)
            else [value]
        )
        yield from (member for member in members if isinstance(member, dict))
