"""Finds the declaration of a family, and the architectures that families have in GGUF."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pkgutil import iter_modules
from typing import Any

from server.model.checkpoint.gguf.architecture import Architecture
from server.model.declarations.declaration import Declaration

FILE = re.compile(r"[a-z][a-z0-9_]*")


def declared(config: Any) -> Declaration | None:
    """Return what a model is; None if its family has no file here.

    Args:
        config: of its text part.

    Raises:
        AttributeError, KeyError, TypeError, ValueError, IndexError: the config lacks a key, or has another value there.
    """
    name = f"{__package__}.{config.model_type}"
    if not FILE.fullmatch(config.model_type) or find_spec(name) is None or not hasattr(import_module(name), "declare"):
        return None
    found: Declaration = import_module(name).declare(config)
    return found


@cache
def gguf_architectures() -> Mapping[str, Architecture]:
    """Return the architectures that are read from GGUF, by the names that llama.cpp gives them."""
    modules = [
        import_module(f"{__package__}.{each.name}") for each in iter_modules(import_module(__package__).__path__)
    ]
    found: list[Architecture] = [module.GGUF for module in modules if hasattr(module, "GGUF")]
    return {each.name: each for each in sorted(found, key=lambda each: each.name)}
