"""The preloader over real files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from expert_store import ExpertStore, Preloader
from tests.expert_store.files import make_catalog
from tests.expert_store.waiting import TIMEOUT, wait_until_idle


@contextmanager
def preloaded(folder: Path, part: float) -> Iterator[ExpertStore]:
    """A store for a part of all experts, after its preloader has ended."""
    catalog = make_catalog(folder)
    store = ExpertStore(catalog, int(part * catalog.total_bytes))
    preloader = Preloader(store)
    preloader.start()
    preloader.join(TIMEOUT)
    wait_until_idle(store)
    yield store
    store.close()
    store.check_integrity()


def test_all_experts_are_read_where_all_fit(tmp_path: Path) -> None:
    with preloaded(tmp_path, 1.0) as store:
        assert store.tiers()["host"].num_resident == sum(store.catalog.layouts.values())


def test_no_expert_is_read_where_not_all_fit(tmp_path: Path) -> None:
    with preloaded(tmp_path, 0.5) as store:
        assert store.tiers()["host"].num_resident == 0


def test_a_closed_store_ends_the_preloader(tmp_path: Path) -> None:
    catalog = make_catalog(tmp_path)
    store = ExpertStore(catalog, catalog.total_bytes)
    store.close()
    preloader = Preloader(store)
    preloader.start()
    assert preloader.join(TIMEOUT)


def test_files_that_can_not_be_read_end_the_preloader(tmp_path: Path) -> None:
    catalog = make_catalog(tmp_path)
    (tmp_path / "layer1.safetensors").write_bytes(b"")
    store = ExpertStore(catalog, catalog.total_bytes)
    preloader = Preloader(store)
    preloader.start()
    assert preloader.join(TIMEOUT)
    wait_until_idle(store)
    assert store.tiers()["host"].num_resident == 8
    store.close()
