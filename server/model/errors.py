"""What can go wrong between a model's name and its first token."""

from __future__ import annotations


class ModelError(Exception):
    """The model can't be served; the message says why and what to do, in one line."""
