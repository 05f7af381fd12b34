"""Declarations as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any

from server.kernels.native.structures.layers import RouterKind
from server.kernels.native.structures.mixers import GateKind, RopeKind
from server.model.blocks.grouped_attention.declaration import QueryScale
from server.model.blocks.module.declaration import Role
from server.model.blocks.table import DECLARATIONS
from server.model.blocks.workspace import PairAngles
from server.model.declarations.declaration import (
    Declaration,
    Experts,
    ImageExperts,
    Layer,
    Mlp,
    Rotary,
    Router,
)

PARTS = (Declaration, Experts, ImageExperts, Layer, Mlp, Rotary, Router, *DECLARATIONS)
ENUMS: Sequence[type[Enum]] = (GateKind, PairAngles, QueryScale, Role, RopeKind, RouterKind)
TYPES: Mapping[str, Any] = {each.__name__: each for each in (*PARTS, *ENUMS)}
TYPE, NAME = "type", "name"  # keys that no field has


def to_json(declared: Declaration) -> str:
    """Return a declaration as JSON."""
    return json.dumps(_encoded(declared))


def from_json(text: str) -> Declaration:
    """Return the declaration that JSON holds.

    Raises:
        ValueError: it holds none.
    """
    try:
        return Declaration(**vars(_decoded(json.loads(text))))
    except (AttributeError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"no declaration: {error}") from error


def _encoded(value: Any) -> Any:
    if isinstance(value, Enum):
        return {TYPE: type(value).__name__, NAME: value.name}
    if is_dataclass(value):
        own = {each.name: getattr(value, each.name) for each in fields(value)}
        return {TYPE: type(value).__name__} | {name: _encoded(each) for name, each in own.items()}
    if isinstance(value, Mapping):
        return {name: _encoded(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_encoded(each) for each in value]
    return value


def _decoded(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_decoded(each) for each in value)
    if not isinstance(value, dict):
        return value
    if TYPE not in value:
        return {name: _decoded(each) for name, each in value.items()}
    kind = TYPES[value[TYPE]]
    if issubclass(kind, Enum):
        return kind[value[NAME]]
    return kind(**{name: _decoded(each) for name, each in value.items() if name != TYPE})
