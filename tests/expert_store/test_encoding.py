"""Experts that slots have in another form than files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from expert_store import ExpertCatalog, ExpertKey, ExpertLayout, ExpertStore, ParameterSpec, encoding_memory_bytes
from tests.expert_store import files, records


@dataclass(frozen=True)
class Halved:
    """Keeps the sums of neighbours."""

    stored: ExpertLayout

    @property
    def layout(self) -> ExpertLayout:
        (spec,) = self.stored.parameters
        return ExpertLayout((ParameterSpec(spec.name, spec.dtype, (*spec.shape[:-1], spec.shape[-1] // 2)),))

    def encode(self, stored: Mapping[str, torch.Tensor], slot: Mapping[str, torch.Tensor]) -> None:
        for name, value in stored.items():
            slot[name].copy_(value.unflatten(-1, (-1, 2)).sum(-1))


def encoded(catalog: ExpertCatalog) -> ExpertCatalog:
    encoding = Halved(catalog.layout(0))
    return ExpertCatalog(
        {layer: replace(entry, layout=encoding.layout, encoding=encoding) for layer, entry in catalog.layers.items()}
    )


@pytest.mark.parametrize(
    ("make", "values"),
    [
        (records.make_records, lambda: torch.full((8,), 2 * 1003, dtype=torch.int32)),
        (files.make_catalog, lambda: 2 * files.expected(1, 3)[:, :3]),
    ],
    ids=["records", "tensors"],
)
def test_slots_have_what_the_encoding_makes_of_files(
    make: Callable[[Path], ExpertCatalog], values: Callable[[], torch.Tensor], tmp_path: Path
) -> None:
    catalog = encoded(make(tmp_path))
    store = ExpertStore(catalog, 2 * catalog.layout(0).slot_bytes)
    try:
        for expert in (0, 1, 2, 3):
            with store.lease({ExpertKey(1, expert): 1}) as lease:
                ((_, weights),) = lease
                found = next(iter(weights.values())).clone()
        assert torch.equal(found, values())
    finally:
        store.close()


def test_a_variant_has_experts_as_files_have_them(tmp_path: Path) -> None:
    catalog = encoded(records.make_records(tmp_path))
    store = ExpertStore(catalog, catalog.total_bytes)
    try:
        store.add_variant("law", records.make_recipes(tmp_path / "law", (0, 2)))
        key = ExpertKey(0, 2, "law")
        with store.lease({key: 1}) as lease:
            ((_, weights),) = lease
            assert weights["weight"].tolist() == [2 * records.value_of(ExpertKey(0, 2, "made"))] * 8
    finally:
        store.close()


def test_encoded_experts_are_not_copied_to_a_device(tmp_path: Path) -> None:
    catalog = encoded(records.make_records(tmp_path))
    with pytest.raises(ValueError, match="can't be copied to a device"):
        ExpertStore(catalog, catalog.total_bytes, device_bytes=catalog.total_bytes)


def test_each_thread_that_reads_is_planned_to_hold_an_expert(tmp_path: Path) -> None:
    catalog = records.make_records(tmp_path)
    assert encoding_memory_bytes(catalog) == 0
    assert encoding_memory_bytes(encoded(catalog)) == 6 * catalog.layout(0).slot_bytes
