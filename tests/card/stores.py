"""Uses stores on the card, right and wrong: ``python -m tests.card.stores`` prints what it saw as JSON."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from expert_store import ExpertStore
from expert_store.io.cuda_device import CudaDevice
from expert_store.io.pinned_memory import PinnedMemory
from tests.card import counts
from tests.card.runtime import Runtime, install
from tests.expert_store.lease_rows import one_row_each
from tests.expert_store.records import LAYOUT, make_records
from tests.expert_store.waiting import wait_until_idle

CARD = torch.device("cuda", 1)
PINNED_LIMIT = 3 * LAYOUT.slot_bytes


def use(runtime: Runtime) -> dict[str, Any]:
    """Use all experts of a store several times, resize it between; return the wrong values, races and contexts."""
    counts.clear()
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        slot = LAYOUT.slot_bytes
        store = ExpertStore(make_records(Path(folder)), 4 * slot, device_bytes=3 * slot, device=CARD)
        for turn in range(4):
            for expert in range(8):
                with store.lease(one_row_each(turn % 2, [expert, (expert + 3) % 8])) as lease:
                    for key, weights in lease:
                        wrong += int(weights["weight"][0]) != turn % 2 * 1000 + key.expert
            wait_until_idle(store)
            store.resize(host_bytes=(3 + turn) * slot, device_bytes=(2 + turn) * slot)
        pinned = len(runtime.pinned)
        store.close()
    devices = sorted({device for device, _ in counts.contexts})
    return {
        "wrong": wrong,
        "races": dict(counts.races),
        "devices": devices,
        "pinned": pinned,
        "left": len(runtime.pinned),
    }


@contextmanager
def replaced(name: str, function: Callable[..., Any]) -> Iterator[None]:
    """Replace a method of ``CudaDevice`` for a while."""
    kept = getattr(CudaDevice, name)
    setattr(CudaDevice, name, function)
    yield
    setattr(CudaDevice, name, kept)


def launch_after_a_refused_pin() -> str:
    """Launch a kernel in the thread whose memory was not pinned; return the error of it."""
    torch.cuda.set_device(CARD)
    pinned = PinnedMemory(CARD, lambda nbytes: torch.empty(nbytes, dtype=torch.uint8, device=CARD))
    for _ in range(2):
        pinned.pin(torch.zeros(PINNED_LIMIT, dtype=torch.uint8))
    try:
        torch.zeros(3, device=CARD).add_(1)
    except torch.AcceleratorError as error:
        return str(error)
    finally:
        pinned.close()
    return ""


if __name__ == "__main__":
    runtime = install(num_devices=2, pinned_limit=PINNED_LIMIT)
    seen: dict[str, Any] = {"right": use(runtime)}
    with replaced("order", lambda self, event: None):
        seen["compute that does not wait for copies"] = use(runtime)
    copy = CudaDevice.copy
    with replaced("copy", lambda self, source, target, after: copy(self, source, target, None)):
        seen["copies that do not wait for compute"] = use(runtime)
    seen["launch after a refused pin"] = launch_after_a_refused_pin()
    print(json.dumps(seen))
