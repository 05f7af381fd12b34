"""The client that measures: replies as they come over a socket."""

from __future__ import annotations

import asyncio

from benchmarks.load_generator import Completion, complete

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
TOKEN = b'data: {"choices":[{"text":"a"}],"usage":null}\n\n'
END = b'data: {"choices":[],"usage":{"completion_tokens":2}}\n\ndata: [DONE]\n\n'


async def measure(*parts: bytes) -> tuple[int, int]:
    """Answer one request with these parts; return the number of arrivals and of tokens."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for part in (HEAD, *parts):
            writer.write(part)
            await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        timing = await complete(f"http://127.0.0.1:{port}", Completion([1], 2))
    return len(timing.arrivals), timing.num_tokens


def test_comments_between_tokens_are_no_tokens() -> None:
    assert asyncio.run(measure(b": keep-alive\n\n", TOKEN, b": keep-alive\n\n", TOKEN, END)) == (2, 2)
