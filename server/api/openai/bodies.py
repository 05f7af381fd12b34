"""Bodies of completions and chat completions, with vLLM's additional sampling parameters."""

import json
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from server.api.core.bodies.fields import MAX_INT32, Stops, Text, is_encodable, only
from server.api.core.bodies.nulls import NullableBody
from server.api.core.bodies.other_samplers import ignored_samplers, named
from server.api.core.choice.adapter_choice import AdapterChoices
from server.api.core.choice.auto_choice import RoutingOptions
from server.api.core.errors.validation import quote
from server.api.core.grammars.json_schema import check_schema
from server.api.core.grammars.relaxed_schema import relax
from server.api.openai.constraints import Constraints, refuse_second
from server.api.openai.content import MAX_IMAGES, MAX_IMAGES_BYTES
from server.api.openai.fields import (
    MAX_INT64,
    MAX_LOGPROBS,
    UNLIMITED,
    AllowedTokenIds,
    BadWords,
    CacheSalt,
    LogitBias,
    Prompts,
    TokenIds,
    TokenLimit,
)
from server.api.openai.messages import NO_FUNCTIONS, Message
from server.api.openai.response_format import ResponseFormat
from server.api.openai.tools import AllowedTools, Choice, NamedTool, Tool, ToolChoice, Tools
from server.engine.interface import GrammarSpec

THINKING_OPTIONS = ("enable_thinking", "thinking")  # names of the template variable that turns reasoning on or off

NO_AUDIO = "asks for audio, and this server writes text only: leave it out"
NO_SEARCH = "can't be used, because this server searches nothing: offer a function that searches as one of the 'tools'"

NoTokenIds = Annotated[
    Any, only(False, why="can be used only in '/v1/chat/completions' and '/v1/completions': leave it out")
]


class StreamOptions(BaseModel):
    model_config = ConfigDict(strict=True)

    include_usage: bool = False


class GenerationBody(Constraints, NullableBody, BaseModel):
    """Fields that completions and chat completions share; null is the same as leaving a field out."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)

    default_max_tokens: ClassVar[int | None] = None  # None: as many as fit the model
    may_cut_max_tokens: ClassVar[bool] = False  # True: max_tokens is cut to what fits the model

    model: Text | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None

    echo: bool = False  # must precede max_tokens, whose validator reads it
    n: int = Field(1, ge=1, le=128)
    max_tokens: TokenLimit | None = Field(None, validation_alias=named("max_tokens"))
    max_completion_tokens: TokenLimit | None = None
    # None: the default of the model.
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)  # 0 is greedy
    top_k: int | None = Field(None, ge=-1, le=MAX_INT32)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, ge=0.01, le=2, validation_alias=named("repetition_penalty"))
    presence_penalty: float = Field(0, ge=-2, le=2)
    frequency_penalty: float = Field(0, ge=-2, le=2)
    logit_bias: LogitBias = {}
    seed: int | None = Field(None, ge=-MAX_INT64 - 1, le=MAX_INT64)
    stop: Stops = []
    stop_token_ids: TokenIds = []
    allowed_token_ids: AllowedTokenIds | None = None
    bad_words: BadWords = []
    ignore_eos: bool = False
    min_tokens: int = Field(0, ge=0, le=MAX_INT32, validation_alias=named("min_tokens"))

    adapters: AdapterChoices = []
    routing: RoutingOptions | None = None

    user: Any = None
    priority: int = Field(0, ge=-MAX_INT32, le=MAX_INT32)
    cache_salt: CacheSalt | None = None
    timeout: float | None = Field(None, gt=0)  # seconds
    truncate_prompt_tokens: TokenLimit | None = None

    prompt_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    best_of: int | None = Field(None, ge=1)
    suffix: Annotated[Any, only("", why="can't be used, because this server inserts no text: leave it out")] = None
    chat_template: Annotated[
        Any, only(why="can't be used, because this server takes no templates from requests: use the model's own")
    ] = None

    response_format: ResponseFormat | None = None
    return_experts: bool = False
    return_adapters: bool = False
    return_token_ids: bool = False

    @field_validator("prompt_logprobs")
    @classmethod
    def need_no_stream(cls, num_logprobs: int, info: ValidationInfo) -> int:
        if info.data.get("stream"):
            raise ValueError("can't be streamed: set 'stream' to false or leave it out")
        return num_logprobs

    @field_validator("best_of")
    @classmethod
    def need_all_choices(cls, best_of: int, info: ValidationInfo) -> int:
        if best_of != info.data.get("n"):
            raise ValueError("must equal 'n', because this server returns all choices that it generates")
        return best_of

    @field_validator("response_format")
    @classmethod
    def need_no_constraint(cls, response_format: ResponseFormat, info: ValidationInfo) -> ResponseFormat:
        if response_format.spec is not None:
            refuse_second(info)
        return response_format

    @field_validator("stream_options")
    @classmethod
    def need_stream(cls, options: StreamOptions, info: ValidationInfo) -> StreamOptions:
        if not info.data.get("stream"):
            raise ValueError("is allowed only for streams: set 'stream' to true or leave it out")
        return options

    @property
    def num_logprobs(self) -> int | None:
        """The number of likeliest tokens beside each generated token; None without logprobs."""
        return None

    @property
    def num_prompt_logprobs(self) -> int | None:
        """The number of likeliest tokens beside each prompt token; None without logprobs of the prompt."""
        return self.prompt_logprobs

    @property
    def requested_max_tokens(self) -> int | None:
        """The requested limit; ``max_completion_tokens`` takes precedence."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def ignored_fields(self) -> list[str]:
        """The names of fields with which another server would generate something else, and this one does not."""
        own = {
            "max_tokens": self.requested_max_tokens,
            "min_tokens": self.min_tokens,
            "repetition_penalty": self.repetition_penalty,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
        }
        return ignored_samplers(self.model_extra or {}, own)

    @property
    def is_unlimited(self) -> bool:
        """True if as many tokens are requested as fit the model."""
        return self.requested_max_tokens == UNLIMITED

    @property
    def parts_of_prompt(self) -> str:
        """A sentence about parts of a prompt that is too long, which its user may not see; empty if there are none."""
        return ""

    @property
    def grammar_spec(self) -> GrammarSpec | None:
        """The grammar that the text must follow."""
        own = None if self.response_format is None else self.response_format.spec
        return own or self.constraint_spec

    @property
    def unenforced(self) -> list[str]:
        """Keywords of the text's schema that no grammar enforces, each as a phrase for the log."""
        own = None if self.response_format is None else self.response_format.json_schema
        schema = self.constraint_schema if own is None else own.json_schema
        return [] if schema is None else [f"{keyword} of the text" for keyword in relax(schema).keywords]

    @property
    def include_usage(self) -> bool:
        """True if the last chunk of a stream has the usage."""
        return self.stream_options is not None and self.stream_options.include_usage


class CompletionBody(GenerationBody):
    default_max_tokens: ClassVar[int | None] = 16

    prompt: Prompts
    max_tokens: int | None = Field(None, ge=UNLIMITED, le=MAX_INT32, validation_alias=named("max_tokens"))
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)

    @field_validator("max_tokens")
    @classmethod
    def check_max_tokens(cls, max_tokens: int, info: ValidationInfo) -> int:
        """Allow 0 only with ``echo``, which returns the prompt."""
        if max_tokens == 0 and not info.data.get("echo"):
            raise ValueError("must be above 0 unless 'echo' is true")
        return max_tokens

    @property
    def num_logprobs(self) -> int | None:
        return self.logprobs

    @property
    def num_prompt_logprobs(self) -> int | None:
        return self.logprobs if self.echo and self.prompt_logprobs is None else self.prompt_logprobs


class ChatBody(GenerationBody):
    messages: list[Message] = Field(min_length=1, fail_fast=True)
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=MAX_LOGPROBS)
    echo: Annotated[Any, only(False)] = None
    tools: Tools = []
    tool_choice: ToolChoice = "auto"
    parallel_tool_calls: bool = True
    modalities: Annotated[Any, only(["text"], why=NO_AUDIO)] = None
    audio: Annotated[Any, only(why=NO_AUDIO)] = None
    web_search_options: Annotated[Any, only(why=NO_SEARCH)] = None
    functions: Annotated[Any, only([], why=NO_FUNCTIONS)] = None
    function_call: Annotated[Any, only("none", "auto", why=NO_FUNCTIONS)] = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    chat_template_kwargs: dict[Text, Any] = {}
    add_generation_prompt: bool = True
    continue_final_message: bool = False

    @field_validator("messages")
    @classmethod
    def limit_images(cls, messages: list[Message]) -> list[Message]:
        images = [image for message in messages for image in message.images]
        if len(images) > MAX_IMAGES:
            raise ValueError(f"must hold no more than {MAX_IMAGES} images, but holds {len(images)}")
        if sum(len(image.base64) for image in images) > MAX_IMAGES_BYTES:
            raise ValueError(
                f"must hold no more than {MAX_IMAGES_BYTES >> 20} MiB of images in total: send smaller ones"
            )
        return messages

    @field_validator("top_logprobs")
    @classmethod
    def need_logprobs(cls, top_logprobs: int, info: ValidationInfo) -> int:
        if top_logprobs and not info.data.get("logprobs"):
            raise ValueError("is allowed only with logprobs: set 'logprobs' to true or leave it out")
        return top_logprobs

    @field_validator("tool_choice")
    @classmethod
    def need_tools(cls, choice: Choice, info: ValidationInfo) -> Choice:
        names = [tool.name for tool in info.data.get("tools", ())]
        if choice == "required" and not names:
            raise ValueError("is 'required', but the request has no tools: send some as 'tools'")
        if isinstance(choice, NamedTool) and choice not in names:
            raise ValueError(f"names {quote(str(choice))}, which is not one of the tools")
        if isinstance(choice, AllowedTools) and (unknown := sorted(choice.names.difference(names))):
            raise ValueError(f"allows {quote(unknown[0])}, which is not one of the tools")
        return choice

    @field_validator("continue_final_message")
    @classmethod
    def need_text(cls, continues: bool, info: ValidationInfo) -> bool:
        if continues and info.data.get("add_generation_prompt"):
            raise ValueError("is allowed only if 'add_generation_prompt' is false")
        messages = info.data.get("messages")
        if continues and messages and messages[-1].tool_calls:
            raise ValueError("must not be true if the last message has tool calls: add their results")
        return continues

    @field_validator("chat_template_kwargs")
    @classmethod
    def limit_options(cls, options: dict[str, Any]) -> dict[str, Any]:
        check_schema(options)  # limits size and depth
        if not is_encodable(json.dumps(options, ensure_ascii=False)):
            raise ValueError("must hold valid Unicode only, without half a surrogate pair")
        return options

    @property
    def shown_tools(self) -> list[Tool]:
        """The tools that the prompt contains."""
        return [] if self.tool_choice == "none" else self.tools

    @property
    def parts_of_prompt(self) -> str:
        tools = self.shown_tools
        return f" The prompt includes {len(tools)} tool definition{'s' * (len(tools) > 1)}." if tools else ""

    @property
    def template_options(self) -> dict[str, Any]:
        """Variables for the chat template."""
        effort = self.reasoning_effort
        options: dict[str, Any] = {} if effort is None else {"reasoning_effort": effort}
        if effort is not None:
            options |= dict.fromkeys(THINKING_OPTIONS, effort != "none")
        return options | self.chat_template_kwargs

    @property
    def num_logprobs(self) -> int | None:
        return self.top_logprobs if self.logprobs else None


class TranslatedChat(ChatBody):
    """A chat of another dialect, whose replies hold no token ids."""

    return_token_ids: NoTokenIds = False
