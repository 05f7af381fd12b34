"""Entry: one stay of an expert in a slot."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, Literal

from expert_store.keys import ExpertKey

if TYPE_CHECKING:  # it needs torch
    from expert_store.io.expert_read import ExpertRead

TierName = Literal["device", "host", "disk"]
EvictObstacle = Literal["not_resident", "pinned", "loading", "in_use"]  # why an expert can't be evicted


class EntryState(Enum):
    LOADING = auto()
    READY = auto()
    FAILED = auto()  # the slot is kept until every lease that waited for the expert has seen the error


@dataclass(eq=False, slots=True)
class Entry:
    """One stay of an expert in a slot. While ``leases`` is positive, it is neither moved nor evicted."""

    key: ExpertKey
    slot: int
    state: EntryState = EntryState.LOADING
    leases: int = 0
    error: Exception | None = None
    is_prefetched: bool = False  # and not requested since
    is_passing: bool = False  # nothing but a pass over a prompt has asked for it
    is_read_ahead: bool = False  # prefetched from disk, and counted for nobody yet
    replaces: ExpertKey | None = None  # the expert whose bytes the slot held before
    read: ExpertRead | None = None  # the read from disk that a LOADING entry waits for
    arrival: Any = None  # on a device: the event after which the slot may be read
