"""Renders a chat, and plans how the assistant's turn is constrained and parsed."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from server.api.core.errors.api_errors import InvalidRequestError
from server.api.core.errors.validation import quote
from server.api.core.grammars.compiler import GrammarCompiler
from server.api.core.grammars.json_schema import check_references, schema_text
from server.api.core.grammars.local_references import MissingSchemaError
from server.api.core.grammars.relaxed_schema import relax
from server.api.core.replies.chat_turn import TurnParser
from server.api.openai.bodies import ChatBody
from server.api.openai.messages import messages_for_template
from server.api.openai.muted_tokens import NONE_MUTED, MutedTokens, mute_calls
from server.api.openai.tools import AllowedTools, NamedTool, Tool, callable_tools, must_call
from server.api.tool_parsers.chat_format import ChatFormat, Reasoning, Schemas
from server.engine.interface import (
    ChatPrompt,
    Grammar,
    GrammarSpec,
    PromptTooLongError,
    RequestRefusedError,
    TextCodec,
)

PROMPT_END = 32  # last tokens of the prompt that may contain the start of reasoning


@dataclass(frozen=True)
class TurnPlan:
    """The prompt of a turn, its grammar, and its parser.

    Args:
        format: the format of the model's turns.
        schemas: schemas of the arguments of the tools in the prompt.
        reasoning: the state of the reasoning at the end of the prompt.
        has_one_call: only the first tool call counts.
        spec: the grammar of the turn; None if it is free.
        tools: the tools whose schemas are in the grammar.
        unenforced: keywords of the schemas in the grammar that it does not enforce, each as a phrase for the log.
        muted: tokens that are not generated.

    """

    prompt: ChatPrompt
    format: ChatFormat
    schemas: Schemas
    reasoning: Reasoning
    has_one_call: bool
    spec: GrammarSpec | None
    tools: Sequence[Tool] = ()
    unenforced: Sequence[str] = ()
    muted: MutedTokens = NONE_MUTED

    @property
    def written_tokens(self) -> frozenset[int]:
        return self.format.written_tokens(has_tools=bool(self.schemas))

    def parser(self) -> TurnParser:
        """Return a parser for one choice."""
        return self.format.parser(self.schemas, self.reasoning, has_one_call=self.has_one_call)


def encode(body: ChatBody, codec: TextCodec, shown_tools: Sequence[Tool] | None = None) -> ChatPrompt:
    """Render and tokenize a chat with some of its tools, by default those that it shows; may block.

    Raises:
        InvalidRequestError: an image is not valid base64, or a tool result answers no call.
        RequestRefusedError: the model does not take the chat.

    """
    images = [image.decode() for message in body.messages for image in message.images]
    tools = [tool.for_template() for tool in (body.shown_tools if shown_tools is None else shown_tools)]
    messages, options = messages_for_template(body.messages), body.template_options
    try:
        return codec.encode_chat(
            messages,
            images,
            tools,
            options,
            add_generation_prompt=body.add_generation_prompt,
            continue_final_message=body.continue_final_message,
        )
    except PromptTooLongError as error:
        raise PromptTooLongError(f"{error}.{body.parts_of_prompt}", error.param) from error


def plan_turn(body: ChatBody, codec: TextCodec) -> TurnPlan:
    """Render a chat and plan the turn that follows it; may block.

    Raises:
        InvalidRequestError: an image is not valid base64, a tool result answers no call, or a tool's schema that must
            be followed refers to one that it does not hold.
        RequestRefusedError: the model does not take the chat.

    """
    chat_format = ChatFormat.of(codec.chat_traits)
    callable_ = callable_tools(body.tools, body.tool_choice)
    calls = must_call(body.tool_choice)
    is_restricted = isinstance(body.tool_choice, AllowedTools) and len(callable_) < len(body.tools)
    # The prompt shows all tools, as with OpenAI, so that it is found in the cache whatever is allowed.
    can_restrict = calls or chat_format.separates_calls
    shown_tools = callable_ if is_restricted and not can_restrict else body.shown_tools
    prompt = encode(body, codec, shown_tools)
    prompt_end = "".join(codec.pieces(prompt.token_ids[-PROMPT_END:]))
    reasoning = chat_format.reasoning_after(prompt_end, body.messages[-1].text if body.continue_final_message else "")
    has_one_call = isinstance(body.tool_choice, NamedTool) or not body.parallel_tool_calls
    own_spec = body.grammar_spec
    try:
        spec = chat_format.grammar(
            own_spec,
            {tool.name: tool.function.parameters for tool in callable_},
            reasoning,
            must_call=calls,
            has_one_call=has_one_call,
            is_strict=is_restricted or any(tool.function.strict for tool in callable_),
        )
    except MissingSchemaError:
        _check_references(callable_)
        raise
    schemas = {tool.name: tool.function.parameters for tool in shown_tools}
    followed = [] if spec is None or spec is own_spec else callable_
    unenforced = [] if own_spec is None else body.unenforced
    unenforced += [
        f"{keyword} of the tool {tool.name}"
        for tool in followed
        for keyword in relax(tool.function.parameters).keywords
    ]
    muted = mute_calls(body, chat_format, prompt, codec)
    return TurnPlan(
        prompt,
        chat_format,
        schemas,
        reasoning=reasoning,
        has_one_call=has_one_call,
        spec=spec,
        tools=followed,
        unenforced=unenforced,
        muted=muted,
    )


def _check_references(tools: Sequence[Tool]) -> None:
    """Refuse a tool whose schema refers to one that it does not hold.

    Raises:
        InvalidRequestError: there is one; the error names the tool.

    """
    for tool in tools:
        try:
            check_references(tool.function.parameters)
        except MissingSchemaError as error:
            raise InvalidRequestError(f"The schema of the tool {quote(tool.name)} {error}.", "tools") from error


async def compile_grammar(plan: TurnPlan, compiler: GrammarCompiler) -> Grammar | None:
    """Compile the grammar of a turn, if it has one.

    Raises:
        InvalidRequestError: the compilation takes too long.
        ServiceUnavailableError: it did not begin in time, because others took too long.
        RequestRefusedError: the grammar can't be compiled. The error names the tool whose schema is the reason.

    """
    if plan.spec is None:
        return None
    try:
        return await compiler.compile(plan.spec)
    except RequestRefusedError:
        for tool in plan.tools:
            await _check_tool(tool, compiler)
        raise


async def _check_tool(tool: Tool, compiler: GrammarCompiler) -> None:
    """Compile the schema of a tool alone.

    Raises:
        RequestRefusedError: it can't be compiled; the error names the tool.

    """
    text = await asyncio.to_thread(schema_text, tool.function.parameters)
    try:
        await compiler.compile(GrammarSpec("json_schema", text, "tools"))
    except RequestRefusedError as error:
        raise RequestRefusedError(f"{error}, in the schema of the tool {quote(tool.name)}", "tools") from error
