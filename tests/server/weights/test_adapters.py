"""Adapters that come and go: registered by name, loaded into few pages, held while requests use them."""

from __future__ import annotations

import os
import pickle
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from server.engine.interface import (
    AccessPolicy,
    ChoiceByToken,
    GenerationFailedError,
    RequestRefusedError,
    UnknownAdapterError,
)
from server.engine.sequence_weights import SequenceWeights
from server.model.chunk_weights import ChosenAdapters
from server.settings import SettingsError
from server.weights.adapter_registry import AdapterRegistry
from server.weights.adapter_store import AdapterStore
from tests.adapters import write_adapter
from tests.server.weights.adapter_rig import CPU, LAYOUT, NUM_LAYERS, TARGETS, Rig


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Rig]]:
    rigs = []

    def make_rig(num_slots: int = 2) -> Rig:
        rigs.append(Rig(tmp_path, num_slots))
        return rigs[-1]

    yield make_rig
    for rig in rigs:
        rig.store.check_integrity()
        rig.memory.close()


def value_of(weights: SequenceWeights) -> float:
    """Return the number that all of an adapter's matrices hold."""
    (chosen,) = weights.chunk_weights.adapters
    values = {
        number
        for matrices in chosen.adapter.linears.values()
        for matrix in matrices
        for number in (*matrix.down.unique().tolist(), *matrix.up.unique().tolist())
    }
    (value,) = values
    return float(value)


def test_an_absent_adapter_is_loaded_while_its_request_waits(make: Callable[..., Rig]) -> None:
    rig = make()
    rig.load("law", 3.0, NUM_LAYERS)  # in two pages
    weights = rig.begin("law")
    assert not weights.acquire()
    rig.wait_for(weights)
    assert value_of(weights) == 3.0
    assert len(weights.chunk_weights.adapters[0].adapter.linears) == NUM_LAYERS


def test_a_resident_adapter_is_there_at_once(make: Callable[..., Rig]) -> None:
    rig = make()
    rig.load("law")
    rig.wait_until_resident(rig.begin("law"))
    assert rig.begin("law").acquire()


def test_an_adapter_that_stayed_in_memory_is_the_same_object(make: Callable[..., Rig]) -> None:
    """The kernels' tables of an adapter live as long as the object."""
    rig = make()
    rig.load("law")
    weights = rig.begin("law")
    rig.wait_for(weights)
    before = weights.chunk_weights
    weights.release()
    assert weights.acquire()
    assert weights.chunk_weights == before


def test_sequences_of_one_adapter_hold_the_same_matrices(make: Callable[..., Rig]) -> None:
    rig = make()
    rig.load("law")
    first, second = rig.begin("law"), rig.begin("law")
    rig.wait_for(first, second)
    assert first.chunk_weights == second.chunk_weights
    assert first.cache_salt == second.cache_salt


def test_adapters_that_are_chosen_by_token_have_prefixes_of_their_own(make: Callable[..., Rig]) -> None:
    rig = make()
    rig.load("law")
    rig.load("code")
    fixed = rig.begin("law")
    salts = {fixed.cache_salt}
    for by_token in (ChoiceByToken(), ChoiceByToken(("law",)), ChoiceByToken(top_k=1), ChoiceByToken(temperature=2.0)):
        weights = rig.select(None, by_token=by_token)
        weights.begin()
        salts.add(weights.cache_salt)
        weights.end()
    assert len(salts) == 5


def test_shares_of_adapters_in_all_tokens_add_up(make: Callable[..., Rig]) -> None:
    rig = make()
    rig.load("law")
    rig.load("code")
    weights = rig.select(None, by_token=ChoiceByToken())
    weights.note_tokens(3, ChosenAdapters({"law": 2.0, "code": 1.0}, 3))
    weights.note_tokens(1, ChosenAdapters({"law": 0.25, "code": 0.75}, 1))
    assert rig.registry.routed_tokens() == {"law": 2.25, "code": 1.75}


def test_tokens_of_an_adapter_are_those_computed_with_it_and_its_shares_until_it_is_unloaded(
    make: Callable[..., Rig],
) -> None:
    rig = make()
    rig.load("law")
    rig.load("code")
    named = rig.select("law")
    mixed = rig.select(None, [("law", 0.5)], by_token=ChoiceByToken())
    named.note_tokens(5, None)
    mixed.note_tokens(2, ChosenAdapters({"code": 1.75}, 2))
    assert rig.registry.num_tokens() == {"law": 7, "code": 1.75}
    assert [(each["name"], each["tokens"]) for each in rig.registry.overview()["data"]] == [("law", 7), ("code", 2)]
    rig.load("law", replace=True)
    assert rig.registry.num_tokens()["law"] == 7
    rig.registry.unload("law")
    rig.load("law")
    assert rig.registry.num_tokens() == {"code": 1.75, "law": 0}


def test_a_policy_limits_the_adapters_that_are_chosen_by_token(make: Callable[..., Rig]) -> None:
    rig = make(3)
    for name in ("law", "code", "safe"):
        rig.load(name)
    policy = AccessPolicy("clerks", ("law",), (("safe", 1.0),))
    names = rig.directory.resolve(None, (), policy, ChoiceByToken())
    assert names is not None
    assert names.by_token == ChoiceByToken(("law",))
    with pytest.raises(UnknownAdapterError, match="there is no adapter 'code'"):
        rig.directory.resolve(None, (), policy, ChoiceByToken(("code",)))


def test_an_adapter_of_latents_is_not_chosen_by_token(make: Callable[..., Rig]) -> None:
    rig = make()
    rig.load("law")
    (name,) = rig.registry.versions()[0][0].files.targets
    rig.registry.targets = replace(rig.registry.targets, latents=frozenset({str(name)}))
    with pytest.raises(RequestRefusedError, match="keys of all earlier tokens"):
        rig.directory.resolve(None, by_token=ChoiceByToken(("law",)))
    with pytest.raises(RequestRefusedError, match="no adapter can be chosen by token"):
        rig.directory.resolve(None, by_token=ChoiceByToken())


def test_adapters_beyond_the_memory_evict_the_least_recently_used_one(make: Callable[..., Rig]) -> None:
    rig = make(2)
    for index in range(4):
        rig.load(f"a{index}", float(index))
    for index in (0, 1, 0, 2):
        weights = rig.begin(f"a{index}")
        rig.wait_for(weights)
        assert value_of(weights) == index
        weights.release()
    states = {each["name"]: each["tier"] for each in rig.registry.overview()["data"]}
    assert states == {"a0": "host", "a1": "disk", "a2": "host", "a3": "disk"}


def test_an_adapter_in_use_is_not_evicted_and_others_wait_their_turn(make: Callable[..., Rig]) -> None:
    rig = make(1)
    rig.load("law", 1.0)
    rig.load("code", 2.0)
    law, code = rig.begin("law"), rig.begin("code")
    rig.wait_for(law)
    assert not code.acquire()
    assert value_of(law) == 1.0
    law.release()
    rig.wait_for(code)
    assert value_of(code) == 2.0


def test_a_loaded_adapter_is_kept_until_its_request_takes_it(make: Callable[..., Rig]) -> None:
    """Two requests take turns in memory for one, instead of evicting each other's adapter for ever."""
    rig = make(1)
    rig.load("law")
    rig.load("code")
    law, code = rig.begin("law"), rig.begin("code")
    assert not law.acquire()
    assert not code.acquire()
    assert rig.woken.acquire(timeout=10)
    assert not code.acquire()
    assert law.acquire()


def test_a_request_that_leaves_gives_up_its_turn(make: Callable[..., Rig]) -> None:
    rig = make(1)
    rig.load("law")
    rig.load("code")
    law, code = rig.begin("law"), rig.begin("code")
    assert not law.acquire()
    law.end()
    rig.wait_for(code)


def test_new_requests_of_a_popular_adapter_do_not_keep_another_waiting(make: Callable[..., Rig]) -> None:
    rig = make(1)
    rig.load("popular")
    rig.load("rare")
    first, rare, second = rig.begin("popular"), rig.begin("rare"), rig.begin("popular")
    rig.wait_for(first)
    assert not rare.acquire()
    assert second.acquire()  # others are not held up at once
    second.release()
    rig.now = 10.0
    assert not second.acquire()
    first.release()
    rig.wait_for(rare)
    rare.release()
    rig.wait_for(second)


def test_a_mixture_takes_its_turn_as_a_whole(make: Callable[..., Rig]) -> None:
    """Each of two mixtures would wait for ever for the other's half."""
    rig = make(2)
    for name in ("a", "b"):
        rig.load(name)
    one = rig.select("a", [("b", 0.5)])
    other = rig.select(None, [("b", 1.0), ("a", 1.0)])
    one.begin()
    other.begin()
    rig.wait_for(one, other)
    assert [each.weight for each in one.chunk_weights.adapters] == [1.0, 0.5]
    assert one.cache_salt != other.cache_salt


def test_a_mixture_that_never_fits_is_refused(make: Callable[..., Rig]) -> None:
    rig = make(1)
    for name in ("a", "b"):
        rig.load(name)
    weights = rig.select("a", [("b", 1.0)])
    with pytest.raises(RequestRefusedError, match="2 pages of memory together, but --adapter-memory holds 1"):
        weights.begin()


def test_a_pin_keeps_the_version_of_a_request_while_one_of_its_sequences_runs(make: Callable[..., Rig]) -> None:
    rig = make()
    rig.load("law", 1.0)
    names = rig.directory.resolve("law")
    assert names is not None
    first = rig.directory.select(names)
    first.begin()
    rig.load("law", 2.0, replace=True)
    second = rig.directory.select(pickle.loads(pickle.dumps(names)))
    second.begin()
    assert second.versions == first.versions != rig.begin("law").versions
    first.end()
    second.end()
    del first, second
    late = rig.directory.select(names)
    late.begin()
    assert late.versions == rig.begin("law").versions


def test_a_replaced_adapter_serves_its_running_requests_to_their_end(make: Callable[..., Rig]) -> None:
    rig = make()
    rig.load("law", 1.0)
    old = rig.begin("law")
    rig.wait_for(old)
    rig.load("law", 2.0, replace=True)
    new = rig.begin("law")
    rig.wait_for(new)
    assert (value_of(old), value_of(new)) == (1.0, 2.0)
    assert old.cache_salt != new.cache_salt
    old.release()
    old.end()
    assert len(rig.store.resident_pages()) == 1


def test_a_request_that_was_resolved_before_a_replacement_gets_the_new_version(make: Callable[..., Rig]) -> None:
    rig = make()
    rig.load("law", 1.0)
    weights = rig.select("law")
    rig.load("law", 2.0, replace=True)
    weights.begin()
    rig.wait_for(weights)
    assert value_of(weights) == 2.0


def test_a_failed_replacement_leaves_the_old_version_serving(make: Callable[..., Rig]) -> None:
    rig = make()
    rig.load("law", 1.0)
    with pytest.raises(RequestRefusedError, match="not finite"):
        rig.load("law", float("nan"), replace=True)
    shutil.rmtree(rig.folder / "law")
    write_adapter(rig.folder / "law", 1.0)
    weights = rig.begin("law")
    rig.wait_for(weights)
    assert value_of(weights) == 1.0


def test_an_unloaded_adapter_goes_with_its_last_request(make: Callable[..., Rig]) -> None:
    rig = make()
    rig.load("law")
    weights, late = rig.begin("law"), rig.select("law")
    rig.wait_for(weights)
    rig.registry.unload("law")
    assert rig.directory.names() == []
    assert value_of(weights) == 1.0
    with pytest.raises(RequestRefusedError, match="the adapter 'law' was unloaded"):
        late.begin()
    assert not rig.dropped
    weights.release()
    weights.end()
    assert rig.store.resident_pages() == {}
    assert tuple(rig.dropped) == weights.versions


def test_an_adapter_that_is_unloaded_while_it_is_loaded_leaves_nothing(make: Callable[..., Rig]) -> None:
    rig = make()
    rig.load("law")
    weights = rig.begin("law")
    weights.acquire()
    rig.registry.unload("law")
    weights.end()
    assert rig.woken.acquire(timeout=10)
    assert rig.store.resident_pages() == {}


def test_a_file_that_changed_since_fails_its_requests_until_it_is_loaded_again(
    make: Callable[..., Rig], caplog: pytest.LogCaptureFixture
) -> None:
    rig = make()
    rig.load("law", 1.0)
    write_adapter(rig.folder / "law", 2.0)
    for _ in range(2):
        weights = rig.begin("law")
        with pytest.raises(GenerationFailedError, match=r"the adapter 'law' can't be loaded; see the"):
            rig.wait_for(weights)
        weights.end()
    write_adapter(rig.folder / "law", 1.0)
    rig.wait_for(rig.begin("law"))
    assert re.search("the adapter law could not be loaded: .* has changed since", caplog.text)


def test_a_file_that_is_gone_fails_its_requests_alone(make: Callable[..., Rig]) -> None:
    rig = make()
    rig.load("law")
    rig.load("code")
    shutil.rmtree(rig.folder / "law")
    law, code = rig.begin("law"), rig.begin("code")
    with pytest.raises(GenerationFailedError, match="see the server's log"):
        rig.wait_for(law)
    rig.wait_for(code)
    assert rig.registry.memory_use().load_failures == 1


def test_a_failure_that_nobody_waited_for_is_not_told_to_a_later_request(make: Callable[..., Rig]) -> None:
    rig = make()
    rig.load("law")
    shutil.move(rig.folder / "law", rig.folder / "away")
    weights = rig.begin("law")
    weights.acquire()
    assert rig.woken.acquire(timeout=10)
    weights.end()
    shutil.move(rig.folder / "away", rig.folder / "law")
    rig.wait_for(rig.begin("law"))


def num_handles() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.slow
def test_loading_and_unloading_leaves_no_memory_threads_or_handles(make: Callable[..., Rig]) -> None:
    rig = make()

    def round_trip(number: int) -> None:
        rig.load("law", float(number))
        weights = rig.begin("law")
        rig.wait_for(weights)
        assert value_of(weights) == number
        weights.release()
        weights.end()
        rig.registry.unload("law")

    for number in range(1, 11):
        round_trip(number)
    before = num_handles(), threading.active_count()
    for number in range(100):
        round_trip(number)
    assert (num_handles(), threading.active_count()) == before
    assert rig.store.resident_pages() == {}
    assert len(rig.memory._open) == len(rig.memory._used) == len(rig.memory._turns) == 0


@pytest.mark.slow
def test_of_many_registered_adapters_few_keep_their_files_open(make: Callable[..., Rig]) -> None:
    rig = make(2)
    for index in range(100):
        rig.load(f"a{index}")
    before = num_handles()
    for index in range(100):
        weights = rig.begin(f"a{index}")
        rig.wait_for(weights)
        weights.release()
        weights.end()
    assert num_handles() - before < 2 * 70


@pytest.mark.parametrize("name", ["", "a b", "../a", "x" * 200, "base", "auto", "-a", "base:law"])
def test_a_name_that_models_have_or_paths_confuse_is_refused(make: Callable[..., Rig], name: str) -> None:
    rig = make()
    write_adapter(rig.folder / "law")
    with pytest.raises(RequestRefusedError) as refused:
        rig.registry.load(name, "law")
    assert refused.value.param == "lora_name"


def test_a_name_is_replaced_only_on_demand(make: Callable[..., Rig]) -> None:
    rig = make()
    rig.load("law")
    with pytest.raises(RequestRefusedError, match="'law' is loaded already; set 'load_inplace'"):
        rig.load("law")


def test_an_adapter_larger_than_the_memory_is_refused(make: Callable[..., Rig]) -> None:
    with pytest.raises(RequestRefusedError, match="more than --adapter-memory; raise it"):
        make(1).load("law", 1.0, NUM_LAYERS)


def test_memory_for_less_than_a_page_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"--adapter-memory is 100 B, but a page .* takes 4.0 KiB; set it to"):
        AdapterStore(LAYOUT, 100, CPU)


def test_unknown_names_are_refused(make: Callable[..., Rig]) -> None:
    rig = make()
    rig.load("law")
    with pytest.raises(UnknownAdapterError, match="there is no adapter 'code'"):
        rig.registry.unload("code")
    with pytest.raises(RequestRefusedError, match="there is no adapter 'code'; see GET /v1/models"):
        rig.directory.resolve("law", [("code", 1.0)])
    with pytest.raises(RequestRefusedError, match="'law' is chosen twice"):
        rig.directory.resolve("law", [("law", 1.0)])


def test_without_a_folder_only_the_operator_loads_adapters(tmp_path: Path, make: Callable[..., Rig]) -> None:
    rig = make()
    registry = AdapterRegistry(TARGETS, rig.memory, None)
    write_adapter(tmp_path / "law")
    with pytest.raises(RequestRefusedError, match="without --adapters-dir"):
        registry.load("law", "law")
    registry.load_own("law", os.fspath(tmp_path / "law"))
    assert registry.names() == ["law"]


def test_the_overview_counts_the_requests_of_a_name_across_its_versions(make: Callable[..., Rig]) -> None:
    rig = make()
    rig.load("law")
    rig.begin("law").end()
    rig.load("law", 2.0, replace=True)
    weights = rig.begin("law")
    (described,) = rig.registry.overview()["data"]
    assert described["requests"] == {"unfinished": 1, "total": 2}
    assert (described["state"], described["rank"], described["bytes"]) == ("registered", 4, 1024)
    rig.wait_for(weights)
    (described,) = rig.registry.overview()["data"]
    assert (described["state"], described["tier"]) == ("running", "host")
