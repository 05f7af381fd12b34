"""Why a model does not take the lean path."""

from __future__ import annotations


class UnusualError(Exception):
    """A model is not of the shape that the native layers compute; the message says what is different."""
