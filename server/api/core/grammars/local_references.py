"""Turns all references of a JSON schema into pointers from its root, such as ``#/$defs/Cat``.

A reference may name an ``$id`` or an ``$anchor``. Some libraries break pointers: they lose the ``#``, do not escape
what a URI can't hold, rename ``definitions``, or put a schema into another one, so that its pointers begin at the wrong
root. Such a reference means the definition of its last name.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote as quote_uri
from urllib.parse import unquote, urljoin

from server.api.core.errors.validation import quote
from server.api.core.grammars.closed_objects import BY_NAME, LITERAL, Schema, find_schema

DEFINITIONS = ("$defs", "definitions")
PLACES = ((), ("$defs",), ("definitions",), ("components", "schemas"))  # of the last name of a broken pointer
URI_CHARACTERS = "!$&'()*+,;=:@~"  # that the steps of a pointer may hold in a URI, besides letters and digits
NAMES = ("$id", "$anchor")

Path = tuple[str, ...]  # keys and indices from the root


class MissingSchemaError(ValueError):
    """A schema refers to one that it does not hold; the message says what it must do."""


@dataclass(frozen=True)
class _Place:
    """The place of a schema.

    Args:
        base: the URI to which its references are relative.
        resource: the path of the schema that has this URI.

    """

    path: Path = ()
    base: str = ""
    resource: Path = ()

    def within(self, *steps: str) -> _Place:
        return replace(self, path=(*self.path, *steps))


@dataclass(frozen=True)
class _Broken:
    """A schema whose reference leads nowhere."""

    schema: Schema
    ref: Any
    path: Path

    @property
    def complaint(self) -> str:
        at = f" at {quote('.'.join(self.path))}" if self.path else ""
        return (
            f"refers to {quote(self.ref)}{at}, but holds no such schema, and the server fetches none: add it to "
            "'$defs', and refer to it as '#/$defs/NAME'"
        )


def local_references(schema: Schema) -> Schema:
    """Return a schema that says the same, whose references are pointers from its root.

    Raises:
        MissingSchemaError: it refers to a schema that it does not hold, and not only in definitions that nothing uses.

    """
    return _Localiser(schema).result()


class _Localiser:
    def __init__(self, root: Schema) -> None:
        self._root = root
        self._resources: dict[str, Path] = {"": ()}  # by URI
        self._anchors: dict[tuple[str, str], Path] = {}  # by URI and name
        self._broken: list[_Broken] = []
        self._read_names(root, _Place())

    def result(self) -> Schema:
        result = self._localised(self._root, _Place())
        if self._broken:
            used = _used(result)
            for each in self._broken:
                if id(each.schema) in used:
                    raise MissingSchemaError(each.complaint)
                del each.schema["$ref"]
        return result

    def _read_names(self, schema: Schema, outer: _Place) -> None:
        place = _own_place(schema, outer)
        self._resources.setdefault(place.base, place.resource)
        fragment = str(schema.get("$id", "")).partition("#")[2]  # of draft 7
        for name in (schema.get("$anchor"), fragment):
            if isinstance(name, str) and name:
                self._anchors.setdefault((place.base, name), place.path)
        for steps, member in _members(schema):
            self._read_names(member, place.within(*steps))

    def _localised(self, schema: Schema, outer: _Place) -> Schema:
        place, ref = _own_place(schema, outer), schema.get("$ref")
        result = {key: self._member(key, value, place) for key, value in schema.items() if key not in NAMES}
        if ref is not None:
            path = self._find(ref, place) if isinstance(ref, str) else None
            if path is None:
                self._broken.append(_Broken(result, ref, place.path))
            else:
                result["$ref"] = pointer(path)
        return result

    def _member(self, key: str, value: Any, place: _Place) -> Any:
        if key in LITERAL:
            return value
        if isinstance(value, list):
            return [
                self._localised(each, place.within(key, str(index))) if isinstance(each, dict) else each
                for index, each in enumerate(value)
            ]
        if not isinstance(value, dict):
            return value
        if key not in BY_NAME:
            return self._localised(value, place.within(key))
        return {
            name: self._localised(each, place.within(key, name)) if isinstance(each, dict) else each
            for name, each in value.items()
        }

    def _find(self, ref: str, place: _Place) -> Path | None:
        uri, _, fragment = ref.partition("#")
        base = _joined(place.base, uri)
        start = self._resources.get(base)
        found = self._anchors.get((base, unquote(fragment)))
        if start is not None and (not fragment or fragment.startswith("/")):
            found = self._follow(start, fragment)
        return self._meant(ref, place) if found is None else found

    def _follow(self, start: Path, fragment: str) -> Path | None:
        """Return the path of what a JSON pointer names, if that is a schema."""
        path, value = start, _at(self._root, start)
        for step in fragment.split("/")[1:]:
            names = [each.replace("~1", "/").replace("~0", "~") for each in (step, unquote(step))]
            name = names[0] if isinstance(value, dict) and names[0] in value else names[1]
            path, value = (*path, name), _at(value, (name,))
        return path if isinstance(value, dict | bool) else None

    def _meant(self, ref: str, place: _Place) -> Path | None:
        """Return the path of the definition that a broken pointer means: of those with its name, the nearest around."""
        *before, name = ref.lstrip("#/").split("/")
        found = self._follow((), "/" + ref.lstrip("#/"))
        if found is not None or tuple(before) not in PLACES:
            return found
        around = [(*place.path[:depth], key) for depth in range(len(place.path), -1, -1) for key in DEFINITIONS]
        return next((found for each in around if (found := self._follow(each, f"/{name}")) is not None), None)


def pointer(path: Path) -> str:
    """Return the reference to what is at a path from the root."""
    steps = (step.replace("~", "~0").replace("/", "~1") for step in path)
    return "#" + "".join(f"/{quote_uri(step, safe=URI_CHARACTERS)}" for step in steps)


def _own_place(schema: Schema, outer: _Place) -> _Place:
    """Return the place of a schema, which begins a resource if it has a URI of its own."""
    name = schema.get("$id")
    uri = name.partition("#")[0] if isinstance(name, str) else ""
    return replace(outer, base=_joined(outer.base, uri), resource=outer.path) if uri else outer


def _joined(base: str, uri: str) -> str:
    try:
        return urljoin(base, uri)
    except ValueError:  # it is none
        return uri


def _members(schema: Schema) -> Iterator[tuple[Path, Schema]]:
    """Yield the schemas within a schema, with their paths from there."""
    for key, value in schema.items():
        if key in LITERAL:
            continue
        inner: dict[Path, Any] = {(key,): value}
        if isinstance(value, list):
            inner = {(key, str(index)): each for index, each in enumerate(value)}
        elif isinstance(value, dict) and key in BY_NAME:
            inner = {(key, name): each for name, each in value.items()}
        yield from ((steps, each) for steps, each in inner.items() if isinstance(each, dict))


def _at(value: Any, path: Path) -> Any:
    for step in path:
        if isinstance(value, list):
            value = value[int(step)] if step.isdecimal() and int(step) < len(value) else None
        else:
            value = value.get(step) if isinstance(value, dict) else None
    return value


def _used(root: Schema) -> set[int]:
    """Return the identities of the schemas that describe a value: definitions count where they are referred to."""
    used, left = set[int](), [root]
    while left:
        schema = left.pop()
        if id(schema) in used:
            continue
        used.add(id(schema))
        left.extend(each for steps, each in _members(schema) if steps[0] not in DEFINITIONS)
        target = find_schema(root, schema["$ref"]) if isinstance(schema.get("$ref"), str) else None
        if target is not None:
            left.append(target)
    return used
