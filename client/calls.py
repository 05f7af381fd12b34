"""API calls. Each function describes a request and how its reply is parsed, without any I/O."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Generic, TypeVar, Unpack
from urllib.parse import quote

import httpx

from client.adapters import Adapter, parse_adapters
from client.experts import Expert, ExpertChange, ExpertMap, parse_change, parse_expert, parse_expert_map
from client.frames import ExpertFrame
from client.generation import ChatReply, Completion, Reply, Token, join_tokens, parse_routing, parse_tokens, parse_usage
from client.metrics import Metrics, parse_metrics
from client.options import ChatOptions, CompletionOptions, EmbeddingOptions, Message, PoolingOptions
from client.parsing import reply_errors
from client.requests import RequestStatus, parse_requests
from client.server_info import Health, Model, parse_models
from client.stream_readers import EventReader, FrameReader, TokenReader
from client.variants import Variant, parse_variant, parse_variants
from client.vectors import Classifications, Embeddings, parse_classifications, parse_embeddings

T = TypeVar("T")
S = TypeVar("S")
R = TypeVar("R", bound=Reply)

Prompt = str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]]
ExpertKeys = Iterable[tuple[int, int]]  # layer and expert

HEALTH_STATUSES = frozenset({HTTPStatus.SERVICE_UNAVAILABLE})


@dataclass(frozen=True)
class RequestSpec:
    """A request to the server; ``accepted_statuses`` are statuses that are no errors, in addition to success."""

    method: str
    path: str
    body: Mapping[str, Any] | None = None
    query: Mapping[str, Any] = field(default_factory=dict)
    is_admin: bool = False
    accepted_statuses: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Call(Generic[T]):
    """A request with a single reply."""

    request: RequestSpec
    reply_name: str  # for error messages
    parse: Callable[[httpx.Response], T]

    def read(self, response: httpx.Response) -> T:
        """Parse the response.

        Raises:
            InvalidReplyError: If the response has an unexpected shape.
        """
        with reply_errors(self.reply_name):
            return self.parse(response)


@dataclass(frozen=True)
class StreamCall(Generic[T, S]):
    """A request whose reply is a stream; ``reader`` creates a reader for each stream."""

    request: RequestSpec
    reader: Callable[[], EventReader[T, S]]


def complete(prompt: Prompt, **options: Unpack[CompletionOptions]) -> Call[Completion]:
    """Continue a text."""
    return Call(_completion({"prompt": prompt, **options}), "completion", lambda response: _reply(Completion, response))


def stream(prompt: Prompt, **options: Unpack[CompletionOptions]) -> StreamCall[Token, Completion]:
    """Continue a text and yield its tokens. The stream's ``result`` is the completion so far."""
    return StreamCall(_completion({"prompt": prompt, **options, **STREAMED}), lambda: TokenReader(Completion))


def chat(messages: str | Sequence[Message], **options: Unpack[ChatOptions]) -> Call[ChatReply]:
    """Generate the assistant's reply to a list of messages, or to one user message given as text."""
    return Call(_chat(messages, options), "chat completion", lambda response: _reply(ChatReply, response))


def stream_chat(messages: str | Sequence[Message], **options: Unpack[ChatOptions]) -> StreamCall[Token, ChatReply]:
    """Generate the assistant's reply and yield its tokens. The stream's ``result`` is the reply so far."""
    return StreamCall(_chat(messages, {**options, **STREAMED}), lambda: TokenReader(ChatReply))


def embed(inputs: Prompt, **options: Unpack[EmbeddingOptions]) -> Call[Embeddings]:
    """Embed texts, lists of token ids, or images as data URLs if the model reads images."""
    body = {"input": inputs, "encoding_format": "float", **options}
    request = RequestSpec("POST", "/v1/embeddings", body)
    return Call(request, "list of embeddings", lambda response: parse_embeddings(response.json()))


def classify(inputs: Prompt, **options: Unpack[PoolingOptions]) -> Call[Classifications]:
    """Label texts, lists of token ids, or images as data URLs if the model reads images."""
    request = RequestSpec("POST", "/v1/classify", {"input": inputs, **options})
    return Call(request, "list of labels", lambda response: parse_classifications(response.json()))


def models() -> Call[list[Model]]:
    """List the served models."""
    return Call(RequestSpec("GET", "/v1/models"), "list of models", lambda response: parse_models(response.json()))


def experts() -> Call[ExpertMap]:
    """Get the residency and traffic of all experts."""
    request = RequestSpec("GET", "/v1/experts", is_admin=True)
    return Call(request, "expert map", lambda response: parse_expert_map(response.json()))


def expert(layer: int, expert: int) -> Call[Expert]:
    """Get one expert."""
    request = RequestSpec("GET", f"/v1/experts/{layer:d}/{expert:d}", is_admin=True)
    return Call(request, "expert", lambda response: parse_expert(response.json()))


def watch_experts(interval: float = 0.5) -> StreamCall[ExpertFrame, ExpertFrame | None]:
    """Yield the residency and traffic of all experts every ``interval`` seconds (0.1 to 60)."""
    request = RequestSpec("GET", "/v1/experts/stream", query={"interval": interval}, is_admin=True)
    return StreamCall(request, FrameReader)


def pin(experts: ExpertKeys) -> Call[ExpertChange]:
    """Load experts, given as (layer, expert) pairs, and keep them in memory."""
    return _change("pin", experts)


def unpin(experts: ExpertKeys) -> Call[ExpertChange]:
    """Unpin experts, so that they can be evicted again."""
    return _change("unpin", experts)


def prefetch(experts: ExpertKeys) -> Call[ExpertChange]:
    """Start loading experts into memory."""
    return _change("prefetch", experts)


def evict(experts: ExpertKeys) -> Call[ExpertChange]:
    """Evict experts from memory, unless they are pinned or in use."""
    return _change("evict", experts)


def variants() -> Call[list[Variant]]:
    """List the expert variants that the server has loaded."""
    request = RequestSpec("GET", "/v1/experts/variants", is_admin=True)
    return Call(request, "list of variants", lambda response: parse_variants(response.json()))


def load_variant(name: str, path: str) -> Call[Variant]:
    """Load an expert variant, in the place of one that has the name already.

    It is served as the model ``BASE:NAME``. Running requests finish with the earlier one.

    Args:
        path: Its folder, relative to the server's ``--experts-dir``.
    """
    request = RequestSpec("POST", "/v1/experts/load", {"name": name, "path": path}, is_admin=True)
    return Call(request, "variant", lambda response: parse_variant(response.json()))


def unload_variant(name: str) -> Call[None]:
    """Unload an expert variant; requests that use it finish."""
    request = RequestSpec("DELETE", f"/v1/experts/variants/{quote(name, safe='')}", is_admin=True)
    return Call(request, "variant change", lambda _: None)


def adapters() -> Call[list[Adapter]]:
    """List the LoRA adapters that the server has loaded."""
    request = RequestSpec("GET", "/v1/adapters", is_admin=True)
    return Call(request, "list of adapters", lambda response: parse_adapters(response.json()))


def load_adapter(
    name: str,
    path: str,
    *,
    replace: bool = False,
    examples: Sequence[str] | None = None,
    description: str | None = None,
) -> Call[None]:
    """Load a LoRA adapter, which is served as a model of that name.

    Args:
        path: Its folder, relative to the server's ``--adapters-dir``.
        replace: Whether the name may have an adapter already.
        examples: Prompts for which the model ``auto`` chooses it; None for what its folder says.
        description: Description of such prompts.
    """
    body: dict[str, Any] = {"lora_name": name, "lora_path": path, "load_inplace": replace}
    if examples is not None:
        body["examples"] = list(examples)
    if description is not None:
        body["description"] = description
    request = RequestSpec("POST", "/v1/load_lora_adapter", body, is_admin=True)
    return Call(request, "adapter change", lambda _: None)


def unload_adapter(name: str) -> Call[None]:
    """Unload a LoRA adapter; requests that use it finish."""
    request = RequestSpec("POST", "/v1/unload_lora_adapter", {"lora_name": name}, is_admin=True)
    return Call(request, "adapter change", lambda _: None)


def requests() -> Call[list[RequestStatus]]:
    """List the running and waiting requests."""
    request = RequestSpec("GET", "/v1/requests", is_admin=True)
    return Call(request, "list of requests", lambda response: parse_requests(response.json()))


def metrics() -> Call[Metrics]:
    """Get all metrics of the server."""
    return Call(RequestSpec("GET", "/metrics"), "metrics", lambda response: parse_metrics(response.text))


def health() -> Call[Health]:
    """Get the liveness of the server. A server that is not ok needs a restart."""
    return _state("/health")


def ready() -> Call[Health]:
    """Get the readiness of the server to take requests."""
    return _state("/ready")


STREAMED: Mapping[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}


def _completion(body: Mapping[str, Any]) -> RequestSpec:
    return RequestSpec("POST", "/v1/completions", body)


def _chat(messages: str | Sequence[Message], options: Mapping[str, Any]) -> RequestSpec:
    conversation = [{"role": "user", "content": messages}] if isinstance(messages, str) else list(messages)
    return RequestSpec("POST", "/v1/chat/completions", {"messages": conversation, **options})


def _reply(kind: type[R], response: httpx.Response) -> R:
    body = response.json()
    choices, usage = join_tokens(parse_tokens(body)), parse_usage(body)
    return kind(body["id"], body["model"], body["created"], choices, usage, parse_routing(body))


def _change(verb: str, experts: ExpertKeys) -> Call[ExpertChange]:
    body = {"experts": [[layer, expert] for layer, expert in experts]}
    request = RequestSpec("POST", f"/v1/experts/{verb}", body, is_admin=True)
    return Call(request, "expert change", lambda response: parse_change(response.json()))


def _state(path: str) -> Call[Health]:
    request = RequestSpec("GET", path, accepted_statuses=HEALTH_STATUSES)
    return Call(request, "health", lambda response: Health(response.json()["status"], response.is_success))
