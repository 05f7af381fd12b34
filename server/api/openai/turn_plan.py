"""What a conversation asks of the turn that follows it."""

from dataclasses import dataclass

from server.api.formats.chat_format import ChatFormat, Reasoning, Schemas
from server.api.openai.messages import messages_for_template
from server.api.openai.schemas import ChatBody
from server.api.openai.tools import NamedTool, callable_tools
from server.api.turn import TurnParser
from server.engine.request import ChatPrompt, GrammarSpec, TextCodec

PROMPT_END = 32  # tokens: reasoning that the prompt opens begins within them


@dataclass(frozen=True)
class TurnPlan:
    """The prompt, and how what the model makes of it is guided and read.

    Args:
        schemas: of the arguments of the tools that the model is told of.
        reasoning: how far it is where the prompt ends.
        spec: what the turn has to be, if it is not free.

    """

    prompt: ChatPrompt
    format: ChatFormat
    schemas: Schemas
    reasoning: Reasoning
    has_one_call: bool
    spec: GrammarSpec | None

    @property
    def written_tokens(self) -> frozenset[int]:
        return self.format.written_tokens(has_tools=bool(self.schemas))

    def parser(self) -> TurnParser:
        """A parser of one choice."""
        return self.format.parser(self.schemas, self.reasoning, has_one_call=self.has_one_call)


def encode(body: ChatBody, codec: TextCodec, *, add_generation_prompt: bool = True) -> ChatPrompt:
    """The conversation as the model takes it; may block.

    Raises:
        InvalidRequestError: an image is no base64, or a tool's result answers no call.
        RequestRefusedError: the model takes no such conversation.

    """
    images = [image.decode() for message in body.messages for image in message.images]
    tools = [tool.for_template() for tool in body.shown_tools]
    messages, options = messages_for_template(body.messages), body.template_options
    return codec.encode_chat(messages, images, tools, options, add_generation_prompt=add_generation_prompt)


def plan_turn(body: ChatBody, codec: TextCodec) -> TurnPlan:
    """Render a conversation and tell what has to follow it; may block.

    Raises:
        InvalidRequestError: an image is no base64, or a tool's result answers no call.
        RequestRefusedError: the model takes no such conversation.

    """
    prompt = encode(body, codec)
    chat_format = ChatFormat.of(codec.chat_traits)
    reasoning = chat_format.reasoning_after("".join(codec.pieces(prompt.token_ids[-PROMPT_END:])))
    has_one_call = isinstance(body.tool_choice, NamedTool) or not body.parallel_tool_calls
    may_be_called = callable_tools(body.tools, body.tool_choice)
    spec = chat_format.grammar(
        body.grammar_spec,
        {tool.name: tool.function.parameters for tool in may_be_called},
        reasoning,
        must_call=body.tool_choice not in ("auto", "none"),
        has_one_call=has_one_call,
        is_strict=any(tool.function.strict for tool in may_be_called),
    )
    schemas = {tool.name: tool.function.parameters for tool in body.shown_tools}
    return TurnPlan(prompt, chat_format, schemas, reasoning, has_one_call, spec)
