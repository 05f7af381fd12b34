"""Replacement policies: which resident expert goes when another is needed."""

from .base import Policy, PolicyFactory
from .lru import LruPolicy

__all__ = ["LruPolicy", "Policy", "PolicyFactory"]
