"""Grammars are compiled off the loop, each once, and not for ever."""

import asyncio

import pytest

from server.api.errors import InvalidRequestError, ServiceUnavailableError
from server.api.grammars import MAX_COMPILING, MAX_KEPT, Grammars
from server.engine.request import GrammarSpec, RequestRefusedError
from tests.server.api.fakes import FakeCodec

SPEC = GrammarSpec("json_schema", "{}")


def spec(number):
    return GrammarSpec("json_schema", str(number))


def compiled(grammars, *specs):
    """What each gives, one after the other."""

    async def scenario():
        return [await grammars.compile(each) for each in specs]

    return asyncio.run(scenario())


async def compile_together(grammars, *specs):
    return await asyncio.gather(*map(grammars.compile, specs), return_exceptions=True)


def test_requests_for_the_same_share_one_compilation_in_a_thread_of_its_own():
    codec = FakeCodec()
    grammars = Grammars(codec)
    together = asyncio.run(compile_together(grammars, *[SPEC] * 5))
    assert len(set(together)) == 1
    assert compiled(grammars, SPEC) == together[:1]
    assert codec.grammars == [SPEC]
    assert [thread.name for thread in codec.threads] == ["grammar"]
    assert codec.threads[0].daemon


def test_what_was_used_longest_ago_is_compiled_anew():
    codec = FakeCodec()
    compiled(Grammars(codec), *map(spec, range(MAX_KEPT)), spec(0), spec(MAX_KEPT), spec(0), spec(1))
    assert codec.grammars == [*map(spec, range(MAX_KEPT + 1)), spec(1)]


def test_a_refusal_reaches_everybody_and_is_forgotten():
    codec = FakeCodec(grammar_refusal=RequestRefusedError("no", "response_format"))
    grammars = Grammars(codec)
    assert asyncio.run(compile_together(grammars, SPEC, SPEC)) == [codec.grammar_refusal] * 2
    codec.grammar_refusal = None
    compiled(grammars, SPEC)
    assert codec.grammars == [SPEC, SPEC]


def test_what_takes_too_long_is_refused_and_there_when_it_is_done():
    codec = FakeCodec()
    codec.grammar_may_end.clear()
    grammars = Grammars(codec, max_seconds=0.01)

    async def scenario():
        with pytest.raises(InvalidRequestError, match="took longer than 0") as error:
            await grammars.compile(SPEC)
        codec.grammar_may_end.set()
        grammars.max_seconds = 30
        await grammars.compile(SPEC)
        return error.value

    error = asyncio.run(scenario())
    assert str(error) == "'response_format' took longer than 0.01 seconds to compile: simplify it."
    assert error.param == "response_format"
    assert codec.grammars == [SPEC]


def test_those_that_find_no_place_are_told_to_come_again():
    codec = FakeCodec()
    codec.grammar_may_end.clear()
    grammars = Grammars(codec, max_seconds=0.01)

    async def scenario():
        results = await compile_together(grammars, *map(spec, range(MAX_COMPILING + 3)))
        codec.grammar_may_end.set()
        grammars.max_seconds = 30
        await grammars.compile(spec(MAX_COMPILING))
        return list(map(type, results))

    assert asyncio.run(scenario()) == [*[InvalidRequestError] * MAX_COMPILING, *[ServiceUnavailableError] * 3]
    # Nobody waits for the others any more; which of the first two threads is quicker is open.
    assert sorted(each.text for each in codec.grammars) == [str(number) for number in range(MAX_COMPILING + 1)]


def test_a_waiter_that_leaves_takes_nobody_with_it():
    codec = FakeCodec()
    codec.grammar_may_end.clear()
    grammars = Grammars(codec)

    async def scenario():
        leaving, staying = (asyncio.create_task(grammars.compile(SPEC)) for _ in range(2))
        await asyncio.sleep(0)
        leaving.cancel()
        codec.grammar_may_end.set()
        return await staying

    assert asyncio.run(scenario()) is not None
