"""What can go wrong between a model's name and its first token."""

from __future__ import annotations

from collections.abc import Sequence


class ModelError(Exception):
    """The model can't be served; the message says why and what to do, in one line."""


class NotBatchableError(ModelError):
    """The model can't run many sequences in one step; the message says which layers are the reason."""


def incomplete(name: str, missing: Sequence[str]) -> ModelError:
    """The error of a checkpoint that lacks some tensors."""
    return ModelError(f"{name} lacks {missing[0]} (and {len(missing) - 1} more); the checkpoint is incomplete")
