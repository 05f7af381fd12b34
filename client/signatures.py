"""Signatures of client methods, copied from the functions that describe their calls."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import update_wrapper
from typing import Any, TypeVar

M = TypeVar("M", bound=Callable[..., Any])

SELF = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)


def with_signature_of(build: Callable[..., Any], method: M) -> M:
    """Copy the name, docstring and parameters of a call's function to the client method that makes the call."""
    update_wrapper(method, build)
    parameters = inspect.signature(build).parameters.values()
    method.__signature__ = inspect.Signature([SELF, *parameters])  # type: ignore[attr-defined]
    return method
