"""One chat turn: sends a question, shows the answer as it arrives, and its cost."""

from __future__ import annotations

import time
from collections.abc import Callable

from client.chat.conversation import Conversation
from client.chat.footer import Timing, footer, routing_text
from client.chat.parameters import MAX_TOKENS
from client.chat.screen import Screen
from client.errors import BadRequestError, GreenroomError
from client.generation import ChatReply
from client.sync_client import Client
from client.terminal import error_line

CUT_OFF = f"the answer was cut off at {MAX_TOKENS} tokens: --max-tokens N sets another limit, 0 none"


def run_turn(
    client: Client,
    conversation: Conversation,
    question: str,
    screen: Screen,
    clock: Callable[[], float] = time.perf_counter,
    *,
    has_default_limit: bool = True,
) -> bool:
    """Send a question and show the answer. Return False if it failed.

    The part of an answer that arrived before Ctrl-C or a failure is added to the conversation. An answer has at most
    ``MAX_TOKENS`` tokens if the user has set no limit, or what the conversation leaves of the model's context.
    """
    messages = conversation.messages_with(question)
    options = {"model": conversation.model, **conversation.request_options}
    is_limited = has_default_limit and "max_tokens" not in conversation.options
    stream = client.stream_chat(messages, **options | ({"max_tokens": MAX_TOKENS} if is_limited else {}))
    timing, is_stopped = Timing(clock()), False
    error: GreenroomError | None = None
    try:
        for token in stream:
            if token.text or token.reasoning:
                timing.count(clock())
            screen.write_reasoning(token.reasoning)
            screen.write(token.text)
    except KeyboardInterrupt:
        if screen.is_plain:
            raise
        is_stopped = True
    except GreenroomError as failure:
        error = failure
    finally:
        stream.close()
        screen.end_answer()
    if is_limited and _is_too_long(error):  # the server fits an answer without a limit into what is left
        return run_turn(client, conversation, question, screen, clock, has_default_limit=False)
    reply = stream.result
    if reply.text or reply.reasoning:
        conversation.add(question, reply.message)
    if error is not None:
        screen.error(("the answer is incomplete: " if timing.num_chunks else "") + _failure_line(error))
        return False
    _show_end(screen, reply, timing, is_stopped=is_stopped, is_limited=is_limited)
    return True


def _show_end(screen: Screen, reply: ChatReply, timing: Timing, *, is_stopped: bool, is_limited: bool) -> None:
    """Show how the answer ended and its cost; on plain output only that the default limit has cut it."""
    is_cut = reply.finish_reason == "length"
    if is_cut and is_limited and screen.is_plain:
        screen.error(CUT_OFF)
    remarks = ["stopped"] if is_stopped else [_cut_remark(is_limited=is_limited)] if is_cut else []
    if reply.routing is not None:
        remarks = [routing_text(reply.routing), *remarks]
    screen.note(" · ".join([*remarks, *footer(reply.usage, timing)]))


def _cut_remark(*, is_limited: bool) -> str:
    more = f" of {MAX_TOKENS}, which /set max_tokens N changes" if is_limited else ""
    return f"truncated at the token limit{more}"


def _is_too_long(error: GreenroomError | None) -> bool:
    return isinstance(error, BadRequestError) and error.code == "context_length_exceeded"


def _failure_line(error: GreenroomError) -> str:
    if _is_too_long(error):
        return f"{error_line(error)} Use /clear to start a new conversation."
    return error_line(error)
