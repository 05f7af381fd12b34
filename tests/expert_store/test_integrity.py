"""Damaged records: named, counted, refused; the others serve."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from expert_store import ExpertCatalog, ExpertKey, ExpertLoadError, ExpertStore
from expert_store.sources.file import DirectFile
from tests.expert_store.lease_rows import one_row_each
from tests.expert_store.records import LAYOUT, make_records


@pytest.fixture
def catalog(tmp_path: Path) -> ExpertCatalog:
    return make_records(tmp_path)


@pytest.fixture
def store(catalog: ExpertCatalog) -> Iterator[ExpertStore]:
    store = ExpertStore(catalog, 4 * LAYOUT.slot_bytes)
    yield store
    store.close()
    store.check_integrity()


def values(store: ExpertStore, layer: int, *experts: int) -> dict[int, int]:
    with store.lease(one_row_each(layer, experts)) as lease:
        return {key.expert: int(weights["weight"][0]) for key, weights in lease}


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 16]))


def test_records_are_read_into_their_slots(store: ExpertStore) -> None:
    assert values(store, 1, 0, 3, 7) == {0: 1000, 3: 1003, 7: 1007}


@pytest.mark.parametrize("offset", [0, 63, LAYOUT.slot_bytes - 1])
def test_one_flipped_bit_quarantines_one_expert(store: ExpertStore, tmp_path: Path, offset: int) -> None:
    flip(tmp_path / "layer1.pack", 3 * LAYOUT.slot_bytes + offset)
    with pytest.raises(ExpertLoadError, match=r"cannot read expert 3 of layer 1: the checksum .* pack the model again"):
        values(store, 1, 3)
    assert store.quarantined.keys() == {ExpertKey(1, 3)}
    assert store.statistics().load_failures == 1
    assert values(store, 1, *(expert for expert in range(8) if expert != 3)).keys() == {0, 1, 2, 4, 5, 6, 7}


def test_a_quarantined_expert_is_refused_without_another_read(store: ExpertStore, tmp_path: Path) -> None:
    flip(tmp_path / "layer0.pack", 0)
    for _ in range(3):
        with pytest.raises(ExpertLoadError, match="expert 0 of layer 0"):
            values(store, 0, 0, 1)
    assert store.statistics().load_failures == 1
    with pytest.raises(ExpertLoadError, match="expert 0 of layer 0"):
        store.pin([ExpertKey(0, 0)])
    assert store.prefetch([ExpertKey(0, 0)]) == 0


def test_an_expert_in_the_place_of_another_is_found_out(catalog: ExpertCatalog, tmp_path: Path) -> None:
    """The checksum of the right bytes in the wrong place is wrong."""
    first, second = (tmp_path / f"layer{layer}.pack" for layer in (0, 1))
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)
    store = ExpertStore(catalog, 4 * LAYOUT.slot_bytes)
    with pytest.raises(ExpertLoadError, match="checksum"):
        values(store, 0, 5)
    store.close()


def test_a_flip_on_the_way_is_read_again(store: ExpertStore, monkeypatch: pytest.MonkeyPatch) -> None:
    read, calls = DirectFile.read, []

    def flip_once(self: DirectFile, pieces: list, bounce: object) -> None:
        read(self, pieces, bounce)
        calls.append(pieces)
        if len(calls) == 1:
            pieces[0].target[5] ^= 1

    monkeypatch.setattr(DirectFile, "read", flip_once)
    assert values(store, 0, 2) == {2: 2}
    assert len(calls) == 2
    assert not store.quarantined
