"""One chat turn: sends a question, shows the answer as it arrives, and its cost."""

from __future__ import annotations

import time
from collections.abc import Callable

from client.chat.conversation import Conversation
from client.chat.footer import Timing, footer, routing_text
from client.chat.screen import Screen
from client.errors import BadRequestError, GreenroomError
from client.sync_client import Client
from client.terminal import error_line

FINISH_REMARKS: dict[str | None, list[str]] = {"length": ["truncated at the token limit"]}


def run_turn(
    client: Client,
    conversation: Conversation,
    question: str,
    screen: Screen,
    clock: Callable[[], float] = time.perf_counter,
) -> bool:
    """Send a question and show the answer. Return False if it failed.

    The part of an answer that arrived before Ctrl-C or a failure is added to the conversation.
    """
    messages = conversation.messages_with(question)
    stream = client.stream_chat(messages, **{"model": conversation.model, **conversation.request_options})
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
    reply = stream.result
    if reply.text or reply.reasoning:
        conversation.add(question, reply.message)
    if error is not None:
        screen.error(("the answer is incomplete: " if timing.num_chunks else "") + _failure_line(error))
        return False
    remarks = ["stopped"] if is_stopped else FINISH_REMARKS.get(reply.finish_reason, [])
    if reply.routing is not None:
        remarks = [routing_text(reply.routing), *remarks]
    screen.note(" · ".join([*remarks, *footer(reply.usage, timing)]))
    return True


def _failure_line(error: GreenroomError) -> str:
    if isinstance(error, BadRequestError) and error.code == "context_length_exceeded":
        return f"{error_line(error)} Use /clear to start a new conversation."
    return error_line(error)
