"""Rewrites the keywords of a JSON schema that no grammar has: by others if these say the same, else by less.

``oneOf`` becomes ``anyOf``, which is the same if its branches exclude each other. What is lost otherwise is named.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from server.api.core.grammars.closed_objects import (
    BY_NAME,
    IN_PLACE,
    LITERAL,
    Schema,
    find_schema,
    steps_of,
    with_definitions,
)
from server.api.core.grammars.exclusive_branches import ExclusiveBranches

# The parts of a regular expression, so that a mark after a backslash or in a class of characters is none.
PART = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\(\?<?[=!]|.", re.DOTALL)
UNFOLLOWED = re.compile(r"\\[bB1-9k]|\(\?<?[=!]")  # look-around and back references: no finite automaton has them


@dataclass(frozen=True)
class Loss:
    """A keyword that is not enforced.

    Args:
        place: the path of its schema within the root, empty for the root.

    """

    keyword: str
    place: str

    def __str__(self) -> str:
        return f"'{self.keyword}'" + (f" of '{self.place}'" if self.place else "")


@dataclass(frozen=True)
class Relaxed:
    """A schema that a grammar can follow, and what it does not enforce of the original."""

    schema: Schema
    losses: tuple[Loss, ...]

    @property
    def keywords(self) -> list[str]:
        """The keywords that are not enforced, each once."""
        return list(dict.fromkeys(loss.keyword for loss in self.losses))


def relax(schema: Mapping[str, Any]) -> Relaxed:
    """Return a schema without keywords that no grammar has, from one within the limits of ``check_schema``."""
    relaxation = _Relaxation(dict(schema))
    return Relaxed(relaxation.result(), tuple(relaxation.losses))


class _Relaxation:
    """The rules of one root: each replaces its keyword in a schema, and notes what is lost."""

    def __init__(self, root: Schema) -> None:
        self._root = root
        self.losses: list[Loss] = []
        self._copies: dict[str, str] = {}  # references to schemas that are moved or dropped, and names of their copies
        self._left: list[str] = []  # references whose copies are not made yet

    def result(self) -> Schema:
        relaxed = self.relaxed(self._root, "")
        if not isinstance(relaxed, dict):
            return {"enum": []}
        copies: Schema = {}
        while self._left:  # a copy may refer to others
            ref = self._left.pop()
            copies[self._copies[ref]] = self.relaxed(find_schema(self._root, ref), ".".join(steps_of(ref)))
        return with_definitions(relaxed, copies)

    @cached_property
    def _branches(self) -> ExclusiveBranches:
        return ExclusiveBranches(self._root)

    def relaxed(self, schema: Any, place: str) -> Any:
        if not isinstance(schema, dict):
            return schema
        if schema.get("not") in (True, {}):
            return False
        own = dict(schema)
        for keyword, rule in RULES.items():
            if keyword in own:
                rule(self, own, place)
        return {key: self._member(key, value, f"{place}.{key}" if place else key) for key, value in own.items()}

    def _member(self, key: str, value: Any, place: str) -> Any:
        if key in LITERAL:
            return value
        if key in BY_NAME and isinstance(value, dict):
            return {name: self.relaxed(member, f"{place}.{name}") for name, member in value.items()}
        if isinstance(value, list):
            return [self.relaxed(member, f"{place}[{index}]") for index, member in enumerate(value)]
        return self.relaxed(value, place)

    def lose(self, keyword: str, place: str) -> None:
        self.losses.append(Loss(keyword, place))

    def one_of(self, schema: Schema, place: str) -> None:
        """Allow any of the branches. A property that tells them apart is required, as OpenAPI says of it."""
        branches, discriminator = schema["oneOf"], schema.get("discriminator")
        if not isinstance(branches, list):
            return
        name = discriminator.get("propertyName") if isinstance(discriminator, dict) else None
        if isinstance(name, str):
            schema["oneOf"] = branches = [_requiring(branch, name) for branch in branches]
        if not self._branches.exclude_each_other(schema):
            self.lose("oneOf", place)
        del schema["oneOf"]
        if "anyOf" in schema:
            schema["allOf"] = [*schema.get("allOf", []), {"anyOf": branches}]
        else:
            schema["anyOf"] = branches

    def condition(self, schema: Schema, place: str) -> None:
        del schema["if"]
        if "then" in schema or "else" in schema:
            self.lose("if", place)

    def unique_items(self, schema: Schema, place: str) -> None:
        if schema.pop("uniqueItems") is True:
            self.lose("uniqueItems", place)

    def contains(self, schema: Schema, place: str) -> None:
        """Enforce only that there are as many items as must be of some kind."""
        least, others = schema.get("minContains", 1), schema.get("minItems", 0)
        del schema["contains"]
        if least != 0 or "maxContains" in schema:
            self.lose("contains", place)
        if isinstance(least, int) and isinstance(others, int) and least > others:
            schema["minItems"] = least

    def property_names(self, schema: Schema, place: str) -> None:
        """Name the properties if the names are listed, or if one pattern describes them."""
        names = schema.pop("propertyNames")
        if isinstance(names, dict) and isinstance(names.get("$ref"), str):
            names = find_schema(self._root, names["$ref"])
        names = {key: value for key, value in names.items() if key != "title"} if isinstance(names, dict) else names
        if names in (True, {}, {"type": "string"}):
            return
        if isinstance(names, dict) and not schema.get("properties") and not schema.get("patternProperties"):
            others = schema.get("additionalProperties", True)
            match names:
                case {"const": str(name)}:
                    schema |= {"properties": {name: others}, "additionalProperties": False}
                    return
                case {"enum": [*listed]} if all(isinstance(name, str) for name in listed):
                    schema |= {"properties": dict.fromkeys(listed, others), "additionalProperties": False}
                    return
                case {"pattern": str(pattern)} if names.keys() <= {"type", "pattern"}:
                    schema |= {"patternProperties": {pattern: others}, "additionalProperties": False}
                    return
        self.lose("propertyNames", place)

    def unevaluated_properties(self, schema: Schema, place: str) -> None:
        """Leave objects to ``close_objects``, which closes them as a whole, unless the schema opens them."""
        others = schema.pop("unevaluatedProperties")
        if others is False or "additionalProperties" in schema:
            return
        schema["additionalProperties"] = True
        if others not in (True, {}):
            self.lose("unevaluatedProperties", place)

    def unevaluated_items(self, schema: Schema, place: str) -> None:
        others = schema.pop("unevaluatedItems")
        if others in (True, {}) or "items" in schema:
            return
        if any(key in schema for key in IN_PLACE):
            self.lose("unevaluatedItems", place)
        else:
            schema["items"] = others

    def num_properties(self, schema: Schema, place: str) -> None:
        """Drop limits on the number of properties unless all that are named are required: no grammar counts others."""
        properties, required = schema.get("properties"), schema.get("required")
        names = set(properties) if isinstance(properties, dict) else set()
        always = {name for name in required if isinstance(name, str)} if isinstance(required, list) else set()
        if names <= always:
            return
        least, most = schema.pop("minProperties", 0), schema.pop("maxProperties", None)
        if not isinstance(least, int) or least > len(always):
            self.lose("minProperties", place)
        is_open = schema.get("additionalProperties", False) is not False or bool(schema.get("patternProperties"))
        if most is not None and (is_open or not isinstance(most, int) or most < len(names | always)):
            self.lose("maxProperties", place)

    def pattern(self, schema: Schema, place: str) -> None:
        if not _is_regular(schema["pattern"]):
            del schema["pattern"]
            self.lose("pattern", place)

    def pattern_properties(self, schema: Schema, place: str) -> None:
        patterns = schema["patternProperties"]
        if isinstance(patterns, dict) and not all(map(_is_regular, patterns)):
            schema["patternProperties"] = {key: value for key, value in patterns.items() if _is_regular(key)}
            schema["additionalProperties"] = True
            self.lose("patternProperties", place)

    def recursive_ref(self, schema: Schema, _place: str) -> None:
        """Read it as a reference to the root, as it is unless another schema extends this one."""
        schema["$ref"] = schema.pop("$recursiveRef")

    def reference(self, schema: Schema, _place: str) -> None:
        """Refer to a copy of a schema that its own place may not hold any more."""
        ref = schema["$ref"]
        if not isinstance(ref, str) or RULES.keys().isdisjoint(steps_of(ref)) or find_schema(self._root, ref) is None:
            return
        if ref not in self._copies:
            self._copies[ref] = f"copy-{len(self._copies)}"
            self._left.append(ref)
        schema["$ref"] = f"#/$defs/{self._copies[ref]}"


Rule = Callable[[_Relaxation, Schema, str], None]


def _losing(keyword: str) -> Rule:
    """Return the rule that drops a keyword; an empty one asks for nothing."""

    def drop(relaxation: _Relaxation, schema: Schema, place: str) -> None:
        if schema.pop(keyword) not in ({}, [], False):
            relaxation.lose(keyword, place)

    return drop


def _silently(keyword: str) -> Rule:
    """Return the rule that drops a keyword which asks for nothing without another."""

    def drop(_relaxation: _Relaxation, schema: Schema, _place: str) -> None:
        del schema[keyword]

    return drop


RULES: Mapping[str, Rule] = {
    "propertyNames": _Relaxation.property_names,  # may add patterns, so it comes before their rule
    "unevaluatedProperties": _Relaxation.unevaluated_properties,
    "pattern": _Relaxation.pattern,
    "patternProperties": _Relaxation.pattern_properties,
    "minProperties": _Relaxation.num_properties,
    "maxProperties": _Relaxation.num_properties,
    "oneOf": _Relaxation.one_of,
    "not": _losing("not"),
    "if": _Relaxation.condition,
    "uniqueItems": _Relaxation.unique_items,
    "contains": _Relaxation.contains,
    "unevaluatedItems": _Relaxation.unevaluated_items,
    "$recursiveRef": _Relaxation.recursive_ref,
    **{name: _losing(name) for name in ("dependentRequired", "dependentSchemas", "dependencies", "$dynamicRef")},
    **{
        name: _silently(name)
        for name in ("then", "else", "minContains", "maxContains", "$dynamicAnchor", "$recursiveAnchor")
    },
    "$ref": _Relaxation.reference,  # last, since the other rules read references within the root
}


def _requiring(branch: Any, name: str) -> Any:
    """Return a branch that also requires a property."""
    required = branch.get("required", []) if isinstance(branch, dict) else None
    return {**branch, "required": [*required, name]} if isinstance(required, list) and name not in required else branch


def _is_regular(pattern: Any) -> bool:
    return not isinstance(pattern, str) or not any(map(UNFOLLOWED.fullmatch, PART.findall(pattern)))
