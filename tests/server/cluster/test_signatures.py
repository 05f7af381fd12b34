"""Expert signatures and their memory."""

from __future__ import annotations

import numpy as np

from server.cluster.signatures import RoutedRequest, Signature, SignatureMemory

LAW, CODE = (Signature.from_counts(np.eye(4)[[number]]) for number in range(2))


def test_a_signature_is_the_share_of_tokens_by_expert_in_each_layer() -> None:
    shares = Signature.from_counts([[1, 3], [0, 0]]).shares
    assert shares.tolist() == [[0.25, 0.75], [0, 0]]


def test_the_longest_known_prefix_counts() -> None:
    memory = SignatureMemory()
    memory.remember(RoutedRequest(16, (b"a",)), LAW)
    memory.remember(RoutedRequest(32, (b"x", b"y")), CODE)
    memory.remember(RoutedRequest(48, (b"b", b"c"), session=b"s"), CODE)
    assert memory.find(RoutedRequest(64, (b"a", b"new"))) is LAW


def test_a_session_is_known_without_a_known_prefix() -> None:
    memory = SignatureMemory()
    memory.remember(RoutedRequest(16, (b"a",), session=b"s"), LAW)
    assert memory.find(RoutedRequest(16, (b"b",), session=b"s")) is LAW


def test_the_signature_of_an_adapter_moves_towards_newer_requests() -> None:
    memory, adapter = SignatureMemory(), frozenset({"law"})
    memory.remember(RoutedRequest(1, weights=adapter), LAW)
    memory.remember(RoutedRequest(1, weights=adapter), CODE)
    found = memory.find(RoutedRequest(9, weights=adapter))
    assert found is not None
    np.testing.assert_allclose(found.shares, [[0.8, 0.2, 0, 0]], rtol=1e-6)


def test_an_unknown_request_has_no_signature() -> None:
    memory = SignatureMemory()
    memory.remember(RoutedRequest(16, (b"a",)), LAW)
    assert memory.find(RoutedRequest(16, (b"b",))) is None


def test_the_least_recently_used_signature_is_forgotten() -> None:
    memory = SignatureMemory(max_keys=2)
    one, two, three = (RoutedRequest(16, (name,)) for name in (b"1", b"2", b"3"))
    memory.remember(one, LAW)
    memory.remember(two, CODE)
    memory.find(one)
    memory.remember(three, CODE)
    assert [memory.find(each) is None for each in (one, two, three)] == [False, True, False]
