"""Functions that describe calls become methods of clients that make them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import update_wrapper
from typing import Any, TypeVar

M = TypeVar("M", bound=Callable[..., Any])

SELF = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)


def named_after(build: Callable[..., Any], method: M) -> M:
    """The method with name, text and parameters of the function that describes its call."""
    update_wrapper(method, build)
    parameters = inspect.signature(build).parameters.values()
    method.__signature__ = inspect.Signature([SELF, *parameters])  # type: ignore[attr-defined]
    return method
