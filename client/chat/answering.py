"""One turn: a question sent, an answer shown as it comes, and what it took."""

from __future__ import annotations

import time
from collections.abc import Callable

from client.chat.conversation import Conversation
from client.chat.footer import Timing, footer
from client.chat.screen import Screen
from client.errors import BadRequestError, GreenroomError
from client.sync_client import Client
from client.terminal import describe

REMARKS: dict[str | None, list[str]] = {"length": ["cut off at the limit of tokens"]}


def answer(
    client: Client,
    conversation: Conversation,
    question: str,
    screen: Screen,
    clock: Callable[[], float] = time.perf_counter,
) -> bool:
    """Ask, and show what comes; False if it failed.

    An answer that Ctrl-C stopped, or that broke off, is part of the conversation as far as it came.
    """
    messages = conversation.messages_with(question)
    stream = client.stream_chat(messages, **{"model": conversation.model, **conversation.options})
    timing, is_stopped = Timing(clock()), False
    error: GreenroomError | None = None
    try:
        for token in stream:
            if token.text or token.reasoning:
                timing.count(clock())
            screen.think(token.reasoning)
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
        screen.complain(("the answer broke off: " if timing.num_pieces else "") + _complaint(error))
        return False
    remarks = ["stopped"] if is_stopped else REMARKS.get(reply.finish_reason, [])
    screen.note(" · ".join([*remarks, *footer(reply.usage, timing)]))
    return True


def _complaint(error: GreenroomError) -> str:
    if isinstance(error, BadRequestError) and error.code == "context_length_exceeded":
        return f"{describe(error)} /clear forgets what was said."
    return describe(error)
