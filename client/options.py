"""Parameters of generation, OpenAI's and vLLM's; what is left out is the model's or the server's choice.

A name that is not here is sent as it is, so that a newer server can be asked for more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

Message = Mapping[str, Any]


class GenerationOptions(TypedDict, total=False):
    """What completions and chats share."""

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
    user: str
    priority: int
    timeout: float  # seconds after which the server ends the request


class CompletionOptions(GenerationOptions, total=False):
    """What only completions take."""

    echo: bool
    logprobs: int


class ChatOptions(GenerationOptions, total=False):
    """What only chats take."""

    logprobs: bool
    top_logprobs: int
    tools: Sequence[Mapping[str, Any]]
    tool_choice: str | Mapping[str, Any]
    parallel_tool_calls: bool
    chat_template_kwargs: Mapping[str, Any]
    reasoning_effort: str
    max_completion_tokens: int
