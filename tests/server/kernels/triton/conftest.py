"""Leaves the tests of Triton's kernels out where Triton is not installed, and runs its interpreter fast elsewhere."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

import pytest

collect_ignore_glob = [] if find_spec("triton") else ["test_*.py"]


@pytest.fixture(scope="session", autouse=True)
def _interpreter() -> None:
    """Let the interpreter keep types and shapes, which changes no result; on a GPU it is not used."""
    import_module("tests.card.fast_interpreter").install()
