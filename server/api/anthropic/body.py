"""Bodies of ``/v1/messages`` and ``/v1/messages/count_tokens``, and the same requests as chats."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from server.api.anthropic.blocks import ASSISTANT, SYSTEM, USER, add_content
from server.api.anthropic.errors import ThreadError
from server.api.anthropic.tools import Tool, ToolChoice
from server.api.conversation import Conversation
from server.api.errors import InvalidRequestError
from server.api.openai.fields import MAX_INT32, Stops, Text, only
from server.api.openai.replies import JsonObject
from server.api.openai.schemas import THINKING_OPTIONS, ChatBody
from server.api.translation import split_extra

KINDS = {"user": USER, "assistant": ASSISTANT, "system": SYSTEM}  # of blocks by who says them

NO_TOOLS = "can't be used, for this server runs no tools itself: leave it out"

# What a chat's fields are called here.
NAMES = {
    "stop": "stop_sequences",
    "response_format": "output_config.format",
    "reasoning_effort": "output_config.effort",
    "chat_template_kwargs": "thinking",
}


class MessagesChat(ChatBody):
    """A chat whose clients have to say a greatest number of tokens; many say one that no model would reach."""

    may_cut_max_tokens: ClassVar[bool] = True


class Message(BaseModel):
    model_config = ConfigDict(strict=True)

    role: Literal["user", "assistant", "system"]
    content: Any  # a text, or blocks


class JsonFormat(BaseModel):
    model_config = ConfigDict(strict=True)

    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class Thinking(BaseModel):
    """Whether to think; how much, only templates can say."""

    model_config = ConfigDict(strict=True)

    type: Literal["enabled", "adaptive", "between_tools", "disabled"]

    def for_chat(self) -> JsonObject:
        return {"chat_template_kwargs": dict.fromkeys(THINKING_OPTIONS, self.type != "disabled")}


class OutputConfig(BaseModel):
    model_config = ConfigDict(strict=True)

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: JsonFormat | None = None


class PromptBody(BaseModel):
    """What Anthropic's clients send of a prompt; null is the same as leaving a field out."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)

    model: Text | None = None
    messages: list[Message] = Field(min_length=1, fail_fast=True)
    system: Any = None  # a text, or blocks
    tools: list[Tool] = []
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig = OutputConfig()
    cache_control: Any = None  # prompts are cached without
    thread: Any = None
    compaction: Annotated[Any, only(why="can't be used, for this server sums up no conversations: leave it out")] = None
    container: Annotated[Any, only(why="can't be used, for this server runs no tools itself: leave it out")] = None
    mcp_servers: Annotated[Any, only([], why="can't be used, for this server runs no tools itself: leave it out")] = (
        None
    )

    @model_validator(mode="before")
    @classmethod
    def leave_out_nulls(cls, body: object) -> object:
        return {name: value for name, value in body.items() if value is not None} if isinstance(body, dict) else body

    @property
    def unknown_fields(self) -> list[str]:
        return split_extra(self.model_extra)[1]

    def for_chat(self) -> ChatBody:
        """The same request as a chat; errors name a chat's fields. Call it off the event loop.

        Raises:
            InvalidRequestError: the conversation is to be kept, or a block of content can't be taken.
            ValidationError: a chat does not take it.

        """
        if self.thread is not None:
            raise ThreadError(
                "'thread' can't be used, for this server keeps no conversations: send the whole one as 'messages'.",
                "thread",
            )
        fields = self._prompt_for_chat() | self._sampling_for_chat()
        return MessagesChat.model_validate(split_extra(self.model_extra)[0] | fields)

    def _prompt_for_chat(self) -> JsonObject:
        fields: JsonObject = {"model": self.model, "messages": self._conversation().messages}
        if self.tools:
            fields["tools"] = [tool.for_chat() for tool in self.tools]
        if self.tool_choice is not None:
            fields |= self.tool_choice.for_chat()
        if self.output_config.format is not None:
            schema = {"name": "output", "schema": self.output_config.format.schema_, "strict": True}
            fields["response_format"] = {"type": "json_schema", "json_schema": schema}
        if self.thinking is not None:
            fields |= self.thinking.for_chat()
        effort = self.output_config.effort
        return fields | {"reasoning_effort": "xhigh" if effort == "max" else effort}

    def _sampling_for_chat(self) -> JsonObject:
        return {}

    def _conversation(self) -> Conversation:
        if self.messages[-1].role == "assistant":
            raise InvalidRequestError(
                "'messages' must not end with the assistant's: this server begins its turn anew, so send no beginning.",
                "messages",
            )
        conversation = Conversation()
        if self.system is not None:
            add_content(conversation, "system", self.system, "system", SYSTEM)
        for index, message in enumerate(self.messages):
            place = f"messages[{index}].content"
            add_content(conversation, message.role, message.content, place, KINDS[message.role])
        return conversation


class MessagesBody(PromptBody):
    """A prompt, and how to answer it."""

    max_tokens: int = Field(ge=1, le=MAX_INT32)
    stream: bool = False
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    stop_sequences: Stops = []
    metadata: Any = None
    service_tier: Any = None

    def _sampling_for_chat(self) -> JsonObject:
        return {
            "stream": self.stream,
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "stop": self.stop_sequences,
        }
