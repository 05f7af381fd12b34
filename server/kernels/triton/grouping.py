"""Groups the choices of many rows by expert, on the device and without waiting for it."""

from __future__ import annotations

import torch


def group_choices(experts: torch.Tensor, num_experts: int, tile_rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Divide choices into tiles of one expert each.

    Every size depends on the number of choices and experts alone, so nothing has to be read by the host.

    Args:
        experts: int32 ``(choices,)``: the expert of each, -1 for none.
        tile_rows: choices of a tile.

    Returns:
        Each tile's expert, int32 ``(tiles,)``, -1 for a tile that is not needed; and its choices, int32
        ``(tiles * tile_rows,)``, -1 where it has none.
    """
    device, num_choices = experts.device, len(experts)
    num_tiles = num_choices // tile_rows + min(num_experts, num_choices)
    bucket = torch.where(experts < 0, num_experts, experts).long()
    order = bucket.argsort(stable=True)
    counts = torch.zeros(num_experts + 1, dtype=torch.long, device=device)
    counts.scatter_add_(0, bucket, torch.ones_like(bucket))
    tiles = (counts + tile_rows - 1) // tile_rows
    tiles[num_experts] = 0
    tile_ends = tiles.cumsum(0)
    starts = counts.cumsum(0) - counts
    sorted_experts = bucket[order]
    place = torch.arange(num_choices, device=device) - starts[sorted_experts]  # of a choice among its expert's
    target = (tile_ends - tiles)[sorted_experts] * tile_rows + place
    beyond = num_tiles * tile_rows  # where choices of no expert go, which is cut off
    target = torch.where(sorted_experts == num_experts, beyond, target)
    choices = torch.full((beyond + 1,), -1, dtype=torch.int32, device=device)
    choices[target] = order.int()
    numbers = torch.arange(num_tiles, device=device)
    tile_experts = torch.searchsorted(tile_ends[:num_experts].contiguous(), numbers, right=True)
    tile_experts = torch.where(tile_experts == num_experts, -1, tile_experts)
    return tile_experts.int(), choices[:beyond]
