"""The names that the package exports when they are first used."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import expert_store


def test_every_name_is_there_and_listed() -> None:
    assert all(hasattr(expert_store, name) for name in expert_store.__all__)
    assert set(expert_store.__all__) <= set(dir(expert_store))


def test_type_checkers_see_the_same_names_from_the_same_modules() -> None:
    tree = ast.parse(Path(expert_store.__file__).read_text("utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.asname: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert seen == {name: f"expert_store.{module}" for name, module in expert_store._MODULE_OF.items()}


def test_a_name_that_is_not_exported_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'expert_store' has no attribute 'Nothing'"):
        _ = expert_store.Nothing
