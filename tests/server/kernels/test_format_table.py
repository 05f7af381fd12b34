"""The table of weight formats."""

from __future__ import annotations

from server.kernels.format_table import BY_TAG, QUANTISED
from server.kernels.native.slot_format import PLAIN, SCALES
from server.kernels.native.structures.matrices import Format


def test_every_format_of_matrices_is_described_by_a_row() -> None:
    described = {kind for each in QUANTISED for kind in each.KINDS} | set(PLAIN.values())
    assert set(Format) - described == {Format.E8M0}  # for scales only
    assert Format.E8M0 in SCALES.values()


def test_each_format_has_a_tag_of_its_own() -> None:
    assert len(BY_TAG) == len(QUANTISED)
