"""Requests to the engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from server.engine.interface.request_weights import RequestWeights
from server.engine.interface.sampling_params import SamplingParams


@dataclass(frozen=True)
class Media:
    """The images of a prompt."""

    inputs: Any  # the processed images; opaque to the engine
    prefix_cache_ids: tuple[int, ...]  # the prompt, with image hashes instead of placeholders
    unsplit_spans: tuple[tuple[int, int], ...] = ()  # first and last (exclusive) token, for tokens of one step


@dataclass(frozen=True)
class ChatPrompt:
    """A conversation as the model's tokens."""

    token_ids: Sequence[int]
    media: Media | None = None


PoolingOfHidden = Literal["mean", "last"]  # over the last hidden states of a prompt's tokens
Pooling = Literal["mean", "last", "classify"]  # the same, or the logits of the model's labels


@dataclass(frozen=True)
class ChatTraits:
    """Traits of a model's chat format, from which its reasoning and tool-call formats are recognised."""

    template: str = ""  # the source of its chat template
    markers: Mapping[str, int] = field(default_factory=dict)  # texts that are single tokens, and their ids
    special: Mapping[str, int] = field(default_factory=dict)  # the markers that are special tokens
    takes_tools: bool = False
    takes_images: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)  # the template's variables for all requests


@dataclass(frozen=True)
class GenerationRequest:
    """One prompt to be continued once, or pooled into an embedding."""

    request_id: str
    prompt_ids: tuple[int, ...]
    sampling: SamplingParams
    priority: int = 0  # lower goes first, as in vLLM
    deadline_seconds: float | None = None  # since submission; then the request ends with an error
    media: Media | None = None
    returns_experts: bool = False  # events hold the routed experts
    keeps_stalls: bool = False  # the timeline holds the longest stalls
    pooling: Pooling | None = None  # the prompt is pooled instead of being continued
    weights: RequestWeights | None = None  # beside the base model's
    spent_seconds: float = 0.0  # of the deadline, before submission
    returns_adapters: bool = False  # events hold the factors of adapters
    cache_salt: bytes = b""  # part of every hash of its prefixes: those of requests with another one never match
    is_internal: bool = False  # the server embeds it to choose an adapter: it counts as a request only if it fails
    session: bytes = b""  # a digest of the conversation, if the client names one; an engine of one process needs none
