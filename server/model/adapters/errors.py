"""Errors of adapters."""

from __future__ import annotations


class AdapterError(Exception):
    """An adapter can't be used; the message says why and what to do, in one sentence."""
