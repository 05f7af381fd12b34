"""Replies tell of adapters that were chosen for each token."""

from server.api.core.choice.auto_choice import AutoChoiceByToken
from server.engine.interface import AdapterShares, ChoiceByToken


def test_shares_add_up_to_their_means_the_heaviest_first():
    choice = ChoiceByToken(("law", "code", "sea"))
    routing = AutoChoiceByToken.of(choice)
    assert routing.shares == {"law": 0, "code": 0, "sea": 0}
    routing.note(AdapterShares(choice, 3, {"law": 1.0, "code": 2.0}))
    routing.note(AdapterShares(choice, 1, {"law": 0.25, "code": 0.75}))
    assert list(routing.shares.items()) == [("code", 2.75 / 4), ("law", 1.25 / 4), ("sea", 0)]


def test_a_mixture_replaced_before_the_request_began_tells_of_the_later_one():
    routing = AutoChoiceByToken.of(ChoiceByToken(("mix:law",), 2, 1.0, "mix"))
    routing.note(AdapterShares(ChoiceByToken(("mix:sea",), 1, 0.5, "mix"), 2, {"mix:sea": 2.0}))
    body = routing.body
    assert (body["adapters"], body["top_k"], body["temperature"]) == (["mix:sea"], 1, 0.5)
    assert body["weights"] == {"mix:sea": 1.0}
