"""Generation parameters, named as by OpenAI and vLLM. Omitted parameters use the defaults of the model or the server.

Unknown names are sent unchanged, so that parameters of newer servers can be used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

Message = Mapping[str, Any]


class RoutingOptions(TypedDict, total=False):
    """Choice of adapters by the model "auto": method "embedding" for the request, or "arrow" for each token."""

    method: str
    threshold: float  # of "embedding": similarity that an adapter must reach
    adapters: Sequence[str]  # of "arrow", as the others: names of adapters to choose from
    top_k: int  # the most adapters that a token has at a layer
    temperature: float


class GenerationOptions(TypedDict, total=False):
    """Parameters of both completions and chats."""

    model: str
    n: int
    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    presence_penalty: float
    frequency_penalty: float
    repetition_penalty: float
    logit_bias: Mapping[str, float]
    seed: int
    stop: str | Sequence[str]
    stop_token_ids: Sequence[int]
    ignore_eos: bool
    min_tokens: int
    response_format: Mapping[str, Any]
    return_experts: bool
    return_adapters: bool
    adapters: Sequence[Mapping[str, Any]]  # LoRA adapters to add: {"name": ..., "weight": ...}
    routing: RoutingOptions  # of the model "auto"
    user: str
    priority: int
    timeout: float  # seconds until the server ends the request


class CompletionOptions(GenerationOptions, total=False):
    """Parameters of completions."""

    echo: bool
    logprobs: int


class ChatOptions(GenerationOptions, total=False):
    """Parameters of chats."""

    logprobs: bool
    top_logprobs: int
    tools: Sequence[Mapping[str, Any]]
    tool_choice: str | Mapping[str, Any]
    parallel_tool_calls: bool
    chat_template_kwargs: Mapping[str, Any]
    reasoning_effort: str
    max_completion_tokens: int


class PoolingOptions(TypedDict, total=False):
    """Parameters of requests that read texts and write none."""

    model: str
    user: str
    priority: int
    timeout: float  # seconds until the server ends the request


class EmbeddingOptions(PoolingOptions, total=False):
    """Parameters of embeddings."""

    dimensions: int
    pooling: str  # "mean" or "last"
    adapters: Sequence[Mapping[str, Any]]
