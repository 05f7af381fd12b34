"""Bodies of ``/api/chat`` and ``/api/generate``, and their translation to bodies of chats and completions."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PlainValidator

from server.api.core.bodies.conversation import Conversation, text_part
from server.api.core.bodies.fields import Text, only
from server.api.core.bodies.translation import CONTINUATION
from server.api.core.choice.auto_choice import RoutingOptions
from server.api.core.errors.api_errors import InvalidRequestError
from server.api.core.errors.validation import quote
from server.api.core.service.service import Service
from server.api.ollama import options
from server.api.ollama.body import RequestBody
from server.api.ollama.messages import Message, conversation_of, image_of
from server.api.ollama.options import Options
from server.api.openai.bodies import THINKING_OPTIONS, ChatBody, CompletionBody, NoTokenIds, TranslatedChat
from server.api.openai.fields import MAX_LOGPROBS
from server.engine.interface import JsonObject

# The names that fields of a ChatBody have here.
NAMES = {
    **options.NAMES,
    "response_format": "format",
    "reasoning_effort": "think",
    "chat_template_kwargs": "think",
}
NAMES_OF_PROMPTS = {**NAMES, "messages": "prompt"}

NO_SUFFIX = "can't be used, because this server fills no gaps in text: leave it out"
NO_TEMPLATE = "can't be used, because the model's own chat template is used: use 'raw' with a complete prompt"
NO_CONTEXT = "can't be used, because this server stores no conversations: send all messages to /api/chat"


class OllamaChat(TranslatedChat):
    """A chat whose limit of tokens is cut to what fits, as by Ollama."""

    may_cut_max_tokens: ClassVar[bool] = True


class OllamaCompletion(CompletionBody):
    """A completion as long as fits, as by Ollama."""

    default_max_tokens: ClassVar[int | None] = None
    may_cut_max_tokens: ClassVar[bool] = True

    return_token_ids: NoTokenIds = False


def format_of(value: object) -> str | JsonObject:
    if value in ("", "json") or isinstance(value, dict):
        return value
    raise ValueError(f'must be "json" or a JSON schema, got {quote(value)}')


Format = Annotated[str | JsonObject, PlainValidator(format_of, json_schema_input_type=str | JsonObject)]


class ReplyRequest(RequestBody):
    """Fields that chats and prompts share."""

    routing: RoutingOptions | None = None
    stream: bool = True
    options: Options = Field(default_factory=lambda: Options.model_validate({}))
    format: Format = ""
    think: bool | Literal["low", "medium", "high", "max"] | None = None
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=MAX_LOGPROBS)

    def note_ignored(self, service: Service) -> None:
        super().note_ignored(service)
        self.options.note_ignored(service)

    def _shared_fields(self, name: str | None) -> JsonObject:
        """Return the fields that chats and completions share."""
        fields = {"model": name, "adapters": self.adapters, "routing": self.routing, "stream": self.stream}
        fields |= self.options.for_generation()
        if isinstance(self.format, dict):
            schema = {"name": "format", "schema": self.format}
            return fields | {"response_format": {"type": "json_schema", "json_schema": schema}}
        return fields | ({"response_format": {"type": "json_object"}} if self.format else {})

    def _chat_fields(self, name: str | None) -> JsonObject:
        fields = self._shared_fields(name) | {"logprobs": self.logprobs, "top_logprobs": self.top_logprobs}
        if isinstance(self.think, str):
            return fields | {"reasoning_effort": "xhigh" if self.think == "max" else self.think}
        if self.think is not None:
            return fields | {"chat_template_kwargs": dict.fromkeys(THINKING_OPTIONS, self.think)}
        return fields


class ChatRequest(ReplyRequest):
    """A conversation; without messages, the model is only to be loaded."""

    messages: list[Message] = Field([], fail_fast=True)
    tools: list[Any] = Field([])

    def for_chat(self, name: str | None) -> ChatBody:
        """Translate the request to a chat with the model ``name``; errors name the fields of a chat.

        Raises:
            InvalidRequestError: a message is at a wrong place.
            ValidationError: the request is not valid as a chat.

        """
        fields = self._chat_fields(name) | {"messages": conversation_of(self.messages).messages}
        last = self.messages[-1]
        if last.role == "assistant":
            if last.tool_calls:
                raise InvalidRequestError("'messages' must not end with tool calls: add their results.", "messages")
            fields |= CONTINUATION
        return OllamaChat.model_validate(fields | ({"tools": self.tools} if self.tools else {}))


class GenerateRequest(ReplyRequest):
    """A prompt; if it is empty, the model is only to be loaded."""

    prompt: Text = ""
    system: Text = ""
    images: list[Text] = Field([])  # base64
    raw: bool = False
    suffix: Annotated[Any, only("", why=NO_SUFFIX)] = ""
    template: Annotated[Any, only("", why=NO_TEMPLATE)] = ""
    context: Annotated[Any, only([], why=NO_CONTEXT)] = None

    def for_chat(self, name: str | None) -> ChatBody:
        """Translate the request to a chat of one turn with the model ``name``.

        Raises:
            ValidationError: the request is not valid as a chat.

        """
        conversation = Conversation()
        if self.system:
            conversation.add_content("system", [text_part(self.system)])
        texts = [text_part(self.prompt)] if self.prompt else []
        conversation.add_content("user", [*map(image_of, self.images), *texts])
        return OllamaChat.model_validate(self._chat_fields(name) | {"messages": conversation.messages})

    def for_completion(self, name: str | None) -> CompletionBody:
        """Translate a raw prompt to a completion by the model ``name``.

        Raises:
            InvalidRequestError: the request has what only a chat template can show.
            ValidationError: the request is not valid as a completion.

        """
        if self.system or self.images or self.think is not None:
            raise InvalidRequestError(
                "'raw' sends the prompt without the chat template: leave out 'system', 'images' and 'think'.", "raw"
            )
        logprobs = self.top_logprobs if self.logprobs else None
        return OllamaCompletion.model_validate(
            self._shared_fields(name) | {"prompt": self.prompt, "logprobs": logprobs}
        )
