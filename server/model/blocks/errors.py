"""The error of a model that native layers can't run."""

from __future__ import annotations


class UnsupportedLayerError(Exception):
    """A model does not have the structure that native layers compute; the message names the difference."""
