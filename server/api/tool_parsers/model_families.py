"""The formats of tool calls and of reasoning, and the signs in a chat template by which they are recognized.

The name of a model plays no part.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from server.api.tool_parsers.call_syntax import CallSyntax
from server.api.tool_parsers.deepseek import DeepSeek
from server.api.tool_parsers.gemma import Gemma
from server.api.tool_parsers.glm import Glm
from server.api.tool_parsers.json_calls import JsonCalls
from server.api.tool_parsers.kimi import Kimi
from server.api.tool_parsers.mistral import Mistral
from server.api.tool_parsers.parameter_tags import ParameterTags
from server.api.tool_parsers.pythonic import Pythonic
from server.api.tool_parsers.tagged_turn import Thinking

BAR = "\N{FULLWIDTH VERTICAL LINE}"
DEEPSEEK = (
    (f"<{BAR}tool▁calls▁begin{BAR}>", f"<{BAR}tool▁calls▁end{BAR}>"),
    (f"<{BAR}tool▁call▁begin{BAR}>", f"<{BAR}tool▁call▁end{BAR}>"),
    f"<{BAR}tool▁sep{BAR}>",
)
KIMI = Kimi(
    ("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"),
    ("<|tool_call_begin|>", "<|tool_call_end|>"),
    "<|tool_call_argument_begin|>",
)
MINIMAX = ParameterTags(
    ("<minimax:tool_call>",),
    "</minimax:tool_call>",
    ('<invoke name="', '">', "</invoke>"),
    ('<parameter name="', '">', "</parameter>"),
    has_section=True,
)
QWEN_CODER = ParameterTags(
    ("<tool_call>", "<function="),
    "</tool_call>",
    ("<function=", ">", "</function>"),
    ("<parameter=", ">", "</parameter>"),
    padding="\n",
)


def lines(tag: str) -> JsonCalls:
    """Return the syntax of calls that each have two tags, with the JSON on a line of its own between them."""
    return JsonCalls((f"<{tag}>",), f"</{tag}>", is_list=False, padding="\n")


@dataclass(frozen=True)
class CallFormat:
    """A syntax of calls, and the signs of it in a chat template."""

    name: str
    signs: Sequence[str]
    syntax: CallSyntax


# The first format whose signs are all in the template applies, so special cases precede general ones.
CALL_FORMATS: Sequence[CallFormat] = (
    CallFormat("gemma", ["<|tool_call>", "<tool_call|>"], Gemma()),
    CallFormat("deepseek-v3", [DEEPSEEK[0][0], "```json"], DeepSeek(*DEEPSEEK, between="\n", has_fence=True)),
    CallFormat("deepseek-v3.1", [DEEPSEEK[0][0]], DeepSeek(*DEEPSEEK)),
    CallFormat("kimi", [KIMI.section[0]], KIMI),
    CallFormat("minimax", ["minimax:tool_call", "<invoke name="], MINIMAX),
    CallFormat("glm", ["<tool_call>", "<arg_key>"], Glm()),
    CallFormat("qwen-coder", ["<tool_call>", "<function=", "<parameter="], QWEN_CODER),
    CallFormat("longcat", ["<longcat_tool_call>"], lines("longcat_tool_call")),
    CallFormat("hermes", ["<tool_call>"], lines("tool_call")),
    CallFormat("tool-calls", ["<tool_calls>"], JsonCalls(("<tool_calls>",), "</tool_calls>")),
    CallFormat("nemotron", ["<TOOLCALL>"], JsonCalls(("<TOOLCALL>",), "</TOOLCALL>")),
    CallFormat(
        "gigachat",
        ["function call", "<|role_sep|>"],
        JsonCalls(("function call<|role_sep|>",), is_list=False, padding="\n"),
    ),
    CallFormat("lfm2", ["<|tool_call_start|>"], Pythonic(("<|tool_call_start|>",), "<|tool_call_end|>")),
    CallFormat("granite", ["<|tool_call|>"], JsonCalls(("<|tool_call|>",))),
    CallFormat("mistral", ["[TOOL_CALLS]", "[ARGS]"], Mistral(has_names=True)),
    CallFormat("mistral-list", ["[TOOL_CALLS]"], Mistral()),
    CallFormat("pythonic", ["[func_name1("], Pythonic()),
    CallFormat("llama", ['"parameters": dictionary'], JsonCalls(is_list=False, arguments="parameters")),
)
OTHER = JsonCalls()  # for templates without known signs
HARMONY_SIGNS = ("<|channel|>", "<|message|>")

THINKING: Sequence[Thinking] = (
    Thinking("<|channel>thought", "<channel|>"),
    Thinking("[THINK]", "[/THINK]"),
    Thinking("<seed:think>", "</seed:think>"),
    Thinking("<|START_THINKING|>", "<|END_THINKING|>"),
    Thinking("<think>", "</think>"),
)
