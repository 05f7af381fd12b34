"""Separates recursive references of a JSON schema from the keywords beside them.

llguidance joins ``{"$ref": ..., "required": [...]}`` with the schema it refers to, and refuses that if the latter holds
the former. A reference to a copy of that schema, which has the keywords itself, says the same.
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
        name = self._copy(schema)
        if name is not None:
            schema = {key: value for key, value in schema.items() if key in ANNOTATIONS} | {"$ref": f"#/$defs/{name}"}
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

    def _copy(self, schema: Schema) -> str | None:
        """Return the name of the copy for a reference with keywords beside it; None if it needs none."""
        ref = schema.get("$ref")
        beside = {key: value for key, value in schema.items() if key != "$ref" and key not in ANNOTATIONS}
        if not isinstance(ref, str) or not beside or self._num_copied > MAX_COPIED:
            return None
        target = find_schema(self._root, ref)
        # Without the second condition, a reference to itself would be copied without end.
        if target is None or "$ref" in target or id(schema) not in self._reachable(ref):
            return None
        key = json.dumps([ref, beside], sort_keys=True)
        if key not in self._copies:
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
