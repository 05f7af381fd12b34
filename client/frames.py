"""States of a server's experts over time, from a snapshot and updates."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from client.experts import Tier, parse_tiers
from client.memory import Memory
from client.parsing import dataclass_from

DISK, HOST, DEVICE = 0, 1, 2

Rows = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class LayerBalance:
    """Load balance of a layer over recent tokens."""

    layer: int
    cv: float  # standard deviation of the tokens by expert over their mean
    max_over_mean: float  # tokens of the busiest expert over the mean
    dead: tuple[int, ...]  # experts without a token
    overloaded: tuple[int, ...]  # experts far above the mean, the busiest first


@dataclass(frozen=True)
class Download:
    """Progress of a model's download to the server's disk."""

    held_bytes: int
    total_bytes: int
    seconds_left: float | None  # None if nothing is known, or while it waits
    reason: str | None = None  # why it waits


@dataclass(frozen=True)
class ExpertFrame:
    """State of all experts at one moment, and totals since the start. Rows are layers, columns are experts."""

    model: str
    layers: tuple[int, ...]
    residency: Rows  # DISK, HOST or DEVICE
    tokens: Rows  # number of tokens routed to each expert
    pinned: frozenset[tuple[int, int]]  # (layer, expert)
    tiers: Mapping[str, Tier]
    hit_ratio: float | None
    optimal_hit_ratio: float | None
    stall_seconds: float
    loaded_bytes: int  # read from disk
    prompt_tokens: int
    generation_tokens: int
    num_requests_running: int
    num_requests_waiting: int
    kv_cache_usage: float  # 0 to 1
    memory: Memory
    balance: tuple[LayerBalance, ...]  # of each layer; empty until there were enough tokens
    download: Download | None = None  # of the rest of a model elsewhere to the server's disk


def parse_snapshot(body: Mapping[str, Any]) -> ExpertFrame:
    """Parse the first event of a stream."""
    return dataclass_from(
        ExpertFrame,
        body,
        layers=tuple(layer["layer"] for layer in body["layers"]),
        residency=tuple(map(tuple, body["residency"])),
        tokens=tuple(map(tuple, body["tokens"])),
        pinned=_pairs(body["pinned"]),
        tiers=parse_tiers(body["tiers"]),
        memory=dataclass_from(Memory, body["memory"]),
        balance=_balance(body["balance"]),
        download=_download(body),
    )


def apply_update(frame: ExpertFrame, body: Mapping[str, Any]) -> ExpertFrame:
    """Return the frame after an update; unchanged rows are the same objects."""
    return dataclass_from(
        ExpertFrame,
        body,
        model=frame.model,
        layers=frame.layers,
        residency=_changed(frame.layers, frame.residency, body["residency"], lambda _, now: now),
        tokens=_changed(frame.layers, frame.tokens, body["tokens"], int.__add__),
        pinned=frame.pinned if body["pinned"] is None else _pairs(body["pinned"]),
        tiers=parse_tiers(body["tiers"]),
        memory=dataclass_from(Memory, body["memory"]),
        balance=frame.balance if body["balance"] is None else _balance(body["balance"]),
        download=_download(body),
    )


def _download(body: Mapping[str, Any]) -> Download | None:
    found = body.get("download")  # older servers tell nothing
    return None if found is None else dataclass_from(Download, found)


def _balance(layers: Sequence[Mapping[str, Any]]) -> tuple[LayerBalance, ...]:
    return tuple(
        dataclass_from(LayerBalance, layer, dead=tuple(layer["dead"]), overloaded=tuple(layer["overloaded"]))
        for layer in layers
    )


def _changed(
    layers: Sequence[int], rows: Rows, changes: Sequence[Sequence[int]], change: Callable[[int, int], int]
) -> Rows:
    """Apply changes of the form ``[layer, expert, number]`` to rows."""
    row_of = {layer: row for row, layer in enumerate(layers)}
    new: dict[int, list[int]] = {}
    for layer, expert, number in changes:
        row = new.setdefault(row_of[layer], list(rows[row_of[layer]]))
        row[expert] = change(row[expert], number)
    return tuple(tuple(new[place]) if place in new else row for place, row in enumerate(rows))


def _pairs(pairs: Sequence[Sequence[int]]) -> frozenset[tuple[int, int]]:
    return frozenset((layer, expert) for layer, expert in pairs)
