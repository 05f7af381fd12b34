"""Mixtures that come and go: their adapters share the memory of others, and their gate comes with them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from server.engine.interface import (
    AccessPolicy,
    ChoiceByToken,
    RequestRefusedError,
    RequiredAdapterError,
    UnknownAdapterError,
)
from server.model.chunk_weights import ChosenAdapters
from tests.gates import write_mixture
from tests.server.weights.adapter_rig import Rig


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path, num_slots=3)
    load(rig, "mix", law=1.0, code=2.0)
    yield rig
    rig.store.check_integrity()
    rig.memory.close()


def load(rig: Rig, name: str, *, replace: bool = False, top_k: int = 2, **values: float) -> None:
    write_mixture(rig.folder / name, values, top_k=top_k)
    rig.registry.load(name, name, replace=replace)


def test_a_request_runs_with_all_adapters_of_the_mixture_and_its_gate(rig: Rig) -> None:
    weights = rig.begin("mix")
    rig.wait_for(weights)
    router = weights.chunk_weights.chooser
    assert router is not None
    assert weights.chunk_weights.adapters == ()
    assert (router.top_k, router.temperature, router.is_signed) == (2, 1.0, True)
    assert [adapter.name for adapter in router.adapters] == ["mix:law", "mix:code"]
    assert [float(next(iter((adapter.gate or {}).values()))[0]) for adapter in router.adapters] == [0.0, 1.0]


def test_a_mixture_in_memory_is_the_same_objects(rig: Rig) -> None:
    first, second = rig.begin("mix"), rig.begin("mix")
    rig.wait_for(first, second)
    assert first.chunk_weights == second.chunk_weights
    assert first.cache_salt == second.cache_salt


def test_a_running_request_keeps_its_version_and_the_next_one_gets_the_new_gate(rig: Rig) -> None:
    old = rig.begin("mix")
    rig.wait_for(old)
    load(rig, "mix", replace=True, top_k=1, law=3.0, sea=4.0)
    assert old.by_token == ChoiceByToken(("mix:law", "mix:code"), 2, 1.0, "mix")
    salt = old.cache_salt
    old.release()
    old.end()
    new = rig.begin("mix")
    rig.wait_for(new)
    assert new.by_token == ChoiceByToken(("mix:law", "mix:sea"), 1, 1.0, "mix")
    assert new.cache_salt != salt


def test_other_adapters_are_added_to_a_mixture(rig: Rig) -> None:
    rig.load("safe", 3.0)
    weights = rig.select("mix", [("safe", 0.5)])
    weights.begin()
    rig.wait_for(weights)
    (fixed,) = weights.chunk_weights.adapters
    assert (fixed.adapter.name, fixed.weight) == ("safe", 0.5)
    assert weights.by_token is not None


def test_a_mixture_is_no_adapter_of_a_request(rig: Rig) -> None:
    with pytest.raises(RequestRefusedError, match="'mix' is a mixture with a gate; name it as the 'model'"):
        rig.directory.resolve(None, [("mix", 1.0)])
    with pytest.raises(RequestRefusedError, match="'mix' can't be chosen by token: it is a mixture"):
        rig.directory.resolve(None, by_token=ChoiceByToken(("mix",)))
    with pytest.raises(UnknownAdapterError, match="there is no adapter 'mix:law'"):
        rig.directory.resolve("mix:law")


def test_where_no_adapter_can_be_chosen_by_token_the_reason_and_a_mixture_are_named(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.load("safe", 3.0)
    registry, known = rig.registry, rig.registry.reason_against_tokens
    monkeypatch.setattr(registry, "reason_against_tokens", lambda name: known(name) or "it adds to routed experts")
    told = (
        "no adapter can be chosen by token: 'safe' can't, since it adds to routed experts; ask for the model 'mix', "
        "whose gate chooses by token, or load an adapter that adds to linear layers only"
    )
    with pytest.raises(RequestRefusedError, match=f"^{told}$"):
        rig.directory.resolve(None, by_token=ChoiceByToken())


def test_a_policy_can_not_demand_a_mixture(rig: Rig) -> None:
    with pytest.raises(RequiredAdapterError, match="'mix', which every request of this key uses, is a mixture"):
        rig.directory.resolve(None, (), AccessPolicy("clerks", None, (("mix", 1.0),)))


def test_a_mixture_that_was_unloaded_meanwhile_is_refused(rig: Rig) -> None:
    weights = rig.select("mix")
    rig.registry.unload("mix")
    with pytest.raises(UnknownAdapterError, match="the mixture 'mix' was unloaded"):
        weights.begin()


def test_a_mixture_that_does_not_fit_into_memory_is_refused(rig: Rig) -> None:
    with pytest.raises(RequestRefusedError, match=r"large takes 16\.0 KiB of memory, more than --adapter-memory"):
        load(rig, "large", a=1.0, b=2.0, c=3.0, d=4.0)


def test_the_list_has_the_gate_and_the_use_of_the_mixture(rig: Rig) -> None:
    rig.load("safe")
    weights = rig.begin("mix")
    rig.wait_for(weights)
    mix, safe = rig.registry.overview()["data"]
    assert mix["gate"] == {"adapters": ["law", "code"], "top_k": 2, "temperature": 1.0, "bytes": 256}
    assert safe["gate"] is None
    assert (mix["state"], mix["tier"], mix["bytes"]) == ("running", "host", 2 * safe["bytes"])
    assert mix["requests"] == {"unfinished": 1, "total": 1}
    assert [(use.name, use.num_requests) for use in rig.registry.uses()] == [("mix", 1), ("safe", 0)]


def test_tokens_are_counted_by_adapter_until_the_mixture_is_unloaded(rig: Rig) -> None:
    weights = rig.begin("mix")
    weights.note_tokens(2, ChosenAdapters({"mix:law": 0.5, "mix:code": 1.5}, 2))
    assert rig.registry.routed_tokens() == {"mix:law": 0.5, "mix:code": 1.5}
    assert rig.registry.num_tokens() == {"mix": 2.0}
    weights.end()
    rig.registry.unload("mix")
    assert rig.registry.routed_tokens() == {}
