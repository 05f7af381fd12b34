"""The preloader over real files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from expert_store import ExpertCatalog, ExpertKey, ExpertStore, Preloader
from tests.expert_store.files import make_catalog
from tests.expert_store.records import LAYOUT, make_recipes, make_records
from tests.expert_store.waiting import TIMEOUT, wait_until_idle


class Preloading(NamedTuple):
    """A store, and the preloader that reads its experts."""

    store: ExpertStore
    preloader: Preloader

    def finish(self) -> None:
        assert self.preloader.wait_until_done(TIMEOUT)
        wait_until_idle(self.store)


@contextmanager
def preloading(catalog: ExpertCatalog, nbytes: int) -> Iterator[Preloading]:
    """A store with a budget, after its preloader's first round."""
    store = ExpertStore(catalog, nbytes)
    preloader = Preloader(store)
    preloader.start()
    preloading = Preloading(store, preloader)
    preloading.finish()
    yield preloading
    preloader.stop()
    store.close()
    store.check_integrity()


def test_all_experts_are_read_where_all_fit(tmp_path: Path) -> None:
    catalog = make_catalog(tmp_path)
    with preloading(catalog, catalog.total_bytes) as (store, _):
        assert not store.absent()


def test_no_expert_is_read_where_not_all_fit(tmp_path: Path) -> None:
    catalog = make_catalog(tmp_path)
    with preloading(catalog, catalog.total_bytes // 2) as (store, _):
        assert not store.residents()


def test_the_experts_of_a_variant_that_comes_later_are_read(tmp_path: Path) -> None:
    catalog = make_records(tmp_path)
    with preloading(catalog, catalog.total_bytes + 2 * LAYOUT.slot_bytes) as preloader:
        preloader.store.add_variant("law", make_recipes(tmp_path / "law", (0, 3), (1, 2)))
        preloader.finish()
        assert {ExpertKey(0, 3, "law"), ExpertKey(1, 2, "law")} <= preloader.store.residents().keys()


def test_all_experts_are_read_once_the_budget_holds_them(tmp_path: Path) -> None:
    catalog = make_catalog(tmp_path)
    with preloading(catalog, catalog.total_bytes // 2) as preloader:
        preloader.store.resize(host_bytes=catalog.total_bytes)
        preloader.finish()
        assert not preloader.store.absent()


def test_a_closed_store_ends_the_preloader(tmp_path: Path) -> None:
    catalog = make_catalog(tmp_path)
    store = ExpertStore(catalog, catalog.total_bytes)
    store.close()
    preloader = Preloader(store)
    preloader.start()
    assert preloader.wait_until_done(TIMEOUT)


def test_files_that_can_not_be_read_end_the_preloader(tmp_path: Path) -> None:
    catalog = make_catalog(tmp_path)
    (tmp_path / "layer1.safetensors").write_bytes(b"")
    store = ExpertStore(catalog, catalog.total_bytes)
    preloader = Preloader(store)
    preloader.start()
    assert preloader.wait_until_done(TIMEOUT)
    wait_until_idle(store)
    assert store.tiers()["host"].num_resident == 8
    store.close()
