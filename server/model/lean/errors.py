"""The error of a model that can't take the native layers."""

from __future__ import annotations


class UnusualError(Exception):
    """A model is not of the shape that the native layers compute; the message says what is different."""
