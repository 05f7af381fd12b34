"""Names of weights, checked in the ingress against what the replicas serve."""

from pathlib import Path

import pytest

from server.cluster.remote_directory import RemoteDirectory, served_by_all
from server.cluster.wire import ServedAdapter, ServedWeights
from server.engine.interface import (
    AccessPolicy,
    ChoiceByToken,
    ForbiddenExperts,
    RequestRefusedError,
    UnknownAdapterError,
)

PIES, CAKES = (ServedAdapter(name, Path(f"/adapters/{name}")) for name in ("pies", "cakes"))
GATE = ServedAdapter("menu", Path("/adapters/menu"), by_token=ChoiceByToken(("menu:a",), 1, 1.0, "menu"))
WEIGHTS = ServedWeights(1.0, {each.name: each for each in (PIES, GATE)}, variants={"legal": Path("/variants/legal")})


def directory() -> RemoteDirectory:
    found = RemoteDirectory("base", loads_adapters=True, prepare=lambda _: None, note_routed=lambda _: None)
    found.mirror(WEIGHTS)
    return found


def test_names_are_those_that_the_replicas_serve() -> None:
    assert directory().names() == ["pies", "menu", "base:legal"]
    assert directory().root("base:legal") == "/variants/legal"


def test_a_mixture_chooses_by_its_own_gate() -> None:
    weights = directory().resolve("menu")
    assert weights is not None
    assert (weights.adapters, weights.by_token) == ((), GATE.by_token)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(UnknownAdapterError):
        directory().resolve(None, [("cakes", 1.0)])
    with pytest.raises(RequestRefusedError):
        directory().resolve("base:none")


def test_experts_that_a_policy_forbids_are_part_of_every_request() -> None:
    policy = AccessPolicy("strict", forbidden_experts=ForbiddenExperts(frozenset({3})))
    for name in (None, "pies"):
        weights = directory().resolve(name, policy=policy)
        assert weights is not None
        assert weights.forbidden_experts == policy.forbidden_experts


def test_weights_that_one_replica_lacks_have_no_name() -> None:
    more = ServedWeights(2.0, {each.name: each for each in (PIES, GATE, CAKES)})
    both = served_by_all([WEIGHTS, more])
    assert (set(both.adapters), both.variants, both.changed_at) == ({"pies", "menu"}, {}, 2.0)
