"""Choices are divided into tiles of one expert."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from server.kernels.triton.grouping import group_choices


@given(
    chosen=st.lists(st.integers(-1, 6), min_size=1, max_size=60),
    tile_rows=st.sampled_from([1, 4, 16]),
)
def test_each_choice_is_once_in_a_tile_of_its_expert(chosen: list[int], tile_rows: int) -> None:
    tile_experts, choices = group_choices(torch.tensor(chosen, dtype=torch.int32), 7, tile_rows)
    tiles = choices.view(-1, tile_rows).tolist()
    assert len(tiles) == len(tile_experts)
    found = [(choice, expert) for tile, expert in zip(tiles, tile_experts.tolist(), strict=True) for choice in tile]
    assert sorted(pair for pair in found if pair[0] >= 0) == [pair for pair in enumerate(chosen) if pair[1] >= 0]
    per_expert = [[choice for choice, own in found if own == expert and choice >= 0] for expert in range(7)]
    assert all(each == sorted(each) for each in per_expert)
