"""Prompts with images in the engine: shared blocks, and spans that must not be split."""

from __future__ import annotations

import pytest

from server.engine.interface import GenerationRequest, Media, RequestRefusedError, SamplingParams, TokenStream
from server.engine.kv.prefix_cache_ids import prefix_cache_ids
from tests.server.engine.fakes import BLOCK_SIZE, Rig, collect, continuation, run

IMAGE = 7  # placeholder token
PROMPT = [65, 66, *[IMAGE] * 20, 67, 68]


def submit(rig: Rig, image: bytes, spans: tuple[tuple[int, int], ...] = (), max_tokens: int = 4) -> TokenStream:
    media = Media(None, prefix_cache_ids(PROMPT, IMAGE, [image]), spans)
    sampling = SamplingParams(max_tokens, temperature=0.0)
    return rig.engine.submit(GenerationRequest("test", tuple(PROMPT), sampling, media=media))


@pytest.mark.parametrize(("second", "is_shared"), [(b"one", True), (b"another", False)])
def test_prompts_share_blocks_only_if_their_images_are_equal(second: bytes, is_shared: bool) -> None:
    rig = Rig()

    async def scenario() -> list[str]:
        return [await collect(submit(rig, image)) for image in (b"one", second)]

    assert run(rig, scenario) == [continuation(PROMPT, 4)] * 2
    assert (rig.engine.statistics.prefix_cache_hits > 0) is is_shared


def test_generated_blocks_are_not_shared_with_prompts_of_another_image() -> None:
    """The prompts have the same placeholders."""
    rig = Rig()
    count = 3 * BLOCK_SIZE

    async def scenario() -> None:
        await collect(submit(rig, b"one", max_tokens=count))
        text = continuation(PROMPT, count).encode()
        longer = [*PROMPT, *text]
        media = Media(None, prefix_cache_ids(longer, IMAGE, [b"another"]))
        sampling = SamplingParams(1, temperature=0.0)
        await collect(rig.engine.submit(GenerationRequest("test", tuple(longer), sampling, media=media)))

    run(rig, scenario)
    assert rig.engine.statistics.prefix_cache_hits == 0


def test_a_conversation_reuses_the_blocks_of_its_earlier_turns() -> None:
    rig = Rig()
    count = 3 * BLOCK_SIZE

    async def scenario() -> None:
        await collect(submit(rig, b"one", max_tokens=count))
        longer = [*PROMPT, *continuation(PROMPT, count).encode()]
        media = Media(None, prefix_cache_ids(longer, IMAGE, [b"one"]))
        sampling = SamplingParams(1, temperature=0.0)
        await collect(rig.engine.submit(GenerationRequest("test", tuple(longer), sampling, media=media)))

    run(rig, scenario)
    assert rig.engine.statistics.prefix_cache_hits > len(PROMPT)


def test_an_unsplit_span_is_computed_in_one_step() -> None:
    """It may exceed the token budget; tokens before and after it go into other steps if necessary."""
    rig = Rig(max_batched_tokens=20)
    pieces = []
    usual = rig.model.run

    def watch(chunks):
        pieces.extend((chunk.num_cached, chunk.num_tokens) for chunk in chunks)
        return usual(chunks)

    rig.model.run = watch

    async def scenario() -> list[str]:
        streams = [rig.submit(b"beside", 12), submit(rig, b"one", spans=((2, 22),))]
        return [await collect(stream) for stream in streams]

    assert run(rig, scenario) == [continuation(b"beside", 12), continuation(PROMPT, 4)]
    assert (2, 20) in pieces


def test_an_image_larger_than_a_step_is_refused() -> None:
    rig = Rig(max_batched_tokens=19)

    async def scenario() -> None:
        with pytest.raises(RequestRefusedError, match=r"an image takes 20 tokens, .* --max-batched-tokens 19"):
            submit(rig, b"one", spans=((2, 22),))

    run(rig, scenario)


def test_each_run_of_placeholders_is_an_image() -> None:
    prompt = [1, IMAGE, IMAGE, 2, IMAGE]
    one, other = prefix_cache_ids(prompt, IMAGE, [b"a", b"b"]), prefix_cache_ids(prompt, IMAGE, [b"a", b"c"])
    assert one[:4] == other[:4]
    assert one[4] != other[4]
    assert one[1] == one[2] < 0
    assert [one[0], one[3]] == [1, 2]


def test_images_with_scattered_tokens_share_one_hash() -> None:
    prompt = [IMAGE, 2, IMAGE, 3]
    one, other = prefix_cache_ids(prompt, IMAGE, [b"a"]), prefix_cache_ids(prompt, IMAGE, [b"b"])
    assert one[0] == one[2] != other[0]
    assert one != prefix_cache_ids(prompt, IMAGE, [b"a", b"b", b"c"])
