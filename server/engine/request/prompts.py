"""What the engine is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from .sampling import SamplingParams


@dataclass(frozen=True)
class Media:
    """The images of a prompt."""

    inputs: Any  # what the model takes of them; opaque to the engine
    content_ids: tuple[int, ...]  # the prompt, with numbers that tell what is shown for the tokens that stand for it
    wholes: tuple[tuple[int, int], ...] = ()  # first and last (exclusive) of tokens that go into one step together


@dataclass(frozen=True)
class ChatPrompt:
    """A conversation as the model takes it."""

    token_ids: Sequence[int]
    media: Media | None = None


Pooling = Literal["mean", "last"]  # of the last hidden states of a prompt's tokens


@dataclass(frozen=True)
class ChatTraits:
    """What tells in which form a model writes its turns."""

    template: str = ""  # the source of its chat template
    markers: frozenset[str] = frozenset()  # texts that are tokens of their own
    special: Mapping[str, int] = field(default_factory=dict)  # those that are special tokens, and their ids


@dataclass(frozen=True)
class GenerationRequest:
    """One prompt to be continued once."""

    request_id: str
    prompt_ids: tuple[int, ...]
    sampling: SamplingParams
    priority: int = 0  # lower goes first, as in vLLM
    deadline_seconds: float | None = None  # from submission; then it ends with an error
    media: Media | None = None
    returns_experts: bool = False  # whether events tell them
    keeps_stalls: bool = False  # whether its timeline tells the longest
    pooling: Pooling | None = None  # instead of being continued, the prompt is made a vector of
