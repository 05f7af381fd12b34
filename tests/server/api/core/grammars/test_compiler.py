"""Grammars are compiled off the event loop, each once, and within a time limit."""

import asyncio
import gc

import pytest

from server.api.core.errors.api_errors import InvalidRequestError, ServiceUnavailableError
from server.api.core.grammars.compiler import GRAMMAR_BYTES, MAX_COMPILING, MAX_KEPT, GrammarCompiler
from server.engine.interface import GrammarSpec, RequestMemory, RequestMemoryError, RequestRefusedError
from tests.server.api.fakes import FakeCodec

SPEC = GrammarSpec("json_schema", "{}")


def spec(number):
    return GrammarSpec("json_schema", str(number))


def compiled(compiler, *specs):
    """Return the result of each, one after the other."""

    async def scenario():
        return [await compiler.compile(each) for each in specs]

    return asyncio.run(scenario())


async def compile_together(compiler, *specs):
    return await asyncio.gather(*map(compiler.compile, specs), return_exceptions=True)


def test_requests_for_the_same_grammar_share_one_compilation_in_a_thread():
    codec = FakeCodec()
    compiler = GrammarCompiler(codec)
    together = asyncio.run(compile_together(compiler, *[SPEC] * 5))
    assert len(set(together)) == 1
    assert compiled(compiler, SPEC) == together[:1]
    assert codec.grammars == [SPEC]
    assert [thread.name for thread in codec.threads] == ["grammar"]
    assert codec.threads[0].daemon


def test_the_least_recently_used_grammar_is_compiled_again():
    codec = FakeCodec()
    compiled(GrammarCompiler(codec), *map(spec, range(MAX_KEPT)), spec(0), spec(MAX_KEPT), spec(0), spec(1))
    assert codec.grammars == [*map(spec, range(MAX_KEPT + 1)), spec(1)]


def test_a_refusal_reaches_all_waiters_and_is_not_cached():
    codec = FakeCodec(grammar_refusal=RequestRefusedError("no", "response_format"))
    compiler = GrammarCompiler(codec)
    assert asyncio.run(compile_together(compiler, SPEC, SPEC)) == [codec.grammar_refusal] * 2
    codec.grammar_refusal = None
    compiled(compiler, SPEC)
    assert codec.grammars == [SPEC, SPEC]


def test_a_slow_compilation_is_refused_and_cached_when_it_is_done():
    codec = FakeCodec()
    codec.grammar_may_end.clear()
    compiler = GrammarCompiler(codec, max_seconds=0.01)

    async def scenario():
        with pytest.raises(InvalidRequestError, match="took longer than 0") as error:
            await compiler.compile(SPEC)
        codec.grammar_may_end.set()
        compiler.max_seconds = 30
        await compiler.compile(SPEC)
        return error.value

    error = asyncio.run(scenario())
    assert str(error) == "'response_format' took longer than 0.01 seconds to compile: simplify it."
    assert error.param == "response_format"
    assert codec.grammars == [SPEC]


def test_compilations_that_do_not_begin_in_time_are_unavailable():
    codec = FakeCodec()
    codec.grammar_may_end.clear()
    compiler = GrammarCompiler(codec, max_seconds=0.01)

    async def scenario():
        results = await compile_together(compiler, *map(spec, range(MAX_COMPILING + 3)))
        codec.grammar_may_end.set()
        compiler.max_seconds = 30
        await compiler.compile(spec(MAX_COMPILING))
        return list(map(type, results))

    assert asyncio.run(scenario()) == [*[InvalidRequestError] * MAX_COMPILING, *[ServiceUnavailableError] * 3]
    # Nobody waits for the others any more; which of the first two threads is quicker is open.
    assert sorted(each.text for each in codec.grammars) == [str(number) for number in range(MAX_COMPILING + 1)]


def test_a_waiter_that_leaves_does_not_cancel_others():
    codec = FakeCodec()
    codec.grammar_may_end.clear()
    compiler = GrammarCompiler(codec)

    async def scenario():
        leaving, staying = (asyncio.create_task(compiler.compile(SPEC)) for _ in range(2))
        await asyncio.sleep(0)
        leaving.cancel()
        codec.grammar_may_end.set()
        return await staying

    assert asyncio.run(scenario()) is not None


def test_a_grammar_counts_as_memory_until_neither_cache_nor_request_has_it():
    memory = RequestMemory(lambda: 2 * GRAMMAR_BYTES + 1000, wait_seconds=0.0)
    compiler = GrammarCompiler(FakeCodec(), memory)

    async def scenario():
        first, second = await compiler.compile(spec(1)), await compiler.compile(spec(2))
        assert memory.held_bytes > 2 * GRAMMAR_BYTES
        with pytest.raises(RequestMemoryError):
            await compiler.compile(spec(3))
        del first
        gc.collect()
        await compiler.compile(spec(3))
        assert memory.held_bytes > 2 * GRAMMAR_BYTES
        return second

    asyncio.run(scenario())


def test_a_grammar_that_needs_more_memory_holds_it_if_it_is_there():
    memory, codec = RequestMemory(lambda: 8 * GRAMMAR_BYTES), FakeCodec()
    compiler = GrammarCompiler(codec, memory)

    async def scenario():
        grammar = await compiler.compile(spec(1))
        held = memory.held_bytes
        assert codec.hold(2 * GRAMMAR_BYTES)
        assert memory.held_bytes == held + 2 * GRAMMAR_BYTES
        assert not codec.hold(5 * GRAMMAR_BYTES)
        await compiler.compile(spec(2))  # the first is no longer cached, as it holds more than a quarter
        return grammar

    grammar = asyncio.run(scenario())
    del grammar
    gc.collect()
    assert memory.held_bytes < 2 * GRAMMAR_BYTES


def test_cached_grammars_leave_other_requests_their_memory():
    memory = RequestMemory(lambda: 16 * GRAMMAR_BYTES)
    compiler = GrammarCompiler(FakeCodec(), memory)

    async def scenario():
        for number in range(20):
            await compiler.compile(spec(number))

    asyncio.run(scenario())
    gc.collect()
    assert GRAMMAR_BYTES < memory.held_bytes <= 4 * GRAMMAR_BYTES


def test_cached_grammars_are_dropped_for_a_request_that_waits_for_memory():
    memory, codec = RequestMemory(lambda: 6 * GRAMMAR_BYTES), FakeCodec()
    compiler = GrammarCompiler(codec, memory)

    async def scenario():
        await compiler.compile(SPEC)
        with memory.reserve() as reservation:
            await reservation.take(6 * GRAMMAR_BYTES, "The images")

    asyncio.run(scenario())


def test_a_grammar_that_fails_holds_no_memory():
    memory = RequestMemory()
    codec = FakeCodec(grammar_refusal=RequestRefusedError("no", "response_format"))
    asyncio.run(compile_together(GrammarCompiler(codec, memory), SPEC))
    assert memory.held_bytes == 0


def test_a_grammar_larger_than_the_memory_is_refused_with_both_sizes():
    compiler = GrammarCompiler(FakeCodec(), RequestMemory(lambda: GRAMMAR_BYTES))
    with pytest.raises(
        RequestRefusedError, match=r"The grammar may take 1.5 MiB.* all requests together may hold 1.5 MiB"
    ):
        compiled(compiler, GrammarSpec("json_schema", "x" * 10))


def test_a_grammar_that_can_never_be_held_leaves_the_cached_ones():
    codec = FakeCodec()
    compiler = GrammarCompiler(codec, RequestMemory(lambda: GRAMMAR_BYTES + 1000))
    compiled(compiler, SPEC)
    with pytest.raises(RequestRefusedError):
        compiled(compiler, GrammarSpec("json_schema", "x" * 100))
    compiled(compiler, SPEC)
    assert codec.grammars == [SPEC]
