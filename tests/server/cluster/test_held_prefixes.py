"""Blocks of prompts that routers compare."""

from dataclasses import replace

from server.cluster.held_prefixes import HeldPrefixes, routed_request
from server.engine.interface import GenerationRequest, RequestWeights, SamplingParams

REQUEST = GenerationRequest("a", tuple(range(40)), SamplingParams(1))


def test_requests_that_begin_alike_have_the_same_first_blocks() -> None:
    other = replace(REQUEST, prompt_ids=(*range(20), 7, 7, *range(30)))
    mine, others = routed_request(REQUEST, 16).blocks, routed_request(other, 16).blocks
    assert mine[0] == others[0]
    assert mine[1] != others[1]


def test_other_weights_and_other_salts_share_no_block() -> None:
    adapted = replace(REQUEST, weights=RequestWeights("pin", adapters=(("pies", 1.0),)))
    salted = replace(REQUEST, cache_salt=b"key")
    first = {routed_request(each, 16).blocks[0] for each in (REQUEST, adapted, salted)}
    assert len(first) == 3


def test_names_of_weights_are_those_that_replicas_report() -> None:
    weights = RequestWeights("pin", variant="legal", adapters=(("pies", 1.0),))
    assert routed_request(replace(REQUEST, weights=weights), 16).weights == {"legal", "pies"}


def test_the_blocks_used_last_are_held_and_the_end_of_a_prompt_goes_first() -> None:
    held = HeldPrefixes(3)
    held.note([b"1", b"2"])
    held.note([b"3", b"4"])
    assert held.newest(9) == {b"1", b"3", b"4"}
    assert held.newest(1) == {b"3"}
