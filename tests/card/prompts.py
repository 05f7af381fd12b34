"""Pages a prompt's experts through the card, with the next layer's copied ahead and without.

``python -m tests.card.prompts [CASE ...]`` prints a JSON line for each case.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from expert_store import ExpertStore, Lease, least_bytes, make_prefetcher
from expert_store.entry import Entry
from expert_store.layout_pool import LayoutPool
from expert_store.prefetching.prompt_stream import DevicePromptStream
from server.kernels.compute_pool import ComputePool
from server.model.attention.kv_cache import KVCache
from server.model.step import SequenceChunk
from server.model.trunk_loader import load_trunk
from tests.card import counts
from tests.card.runtime import install
from tests.card.steps import CARD, qwen3_moe
from tests.card.streams import default_streams
from tests.checkpoints import save_checkpoint
from tests.expert_store.waiting import wait_until_idle

NUM_LAYERS, NUM_EXPERTS = 3, 16
CHUNKS = (10, 10, 1, 2)  # tokens of each step: most experts of each layer, then a few
BLOCK, NUM_BLOCKS = 8, 8
ALL = NUM_LAYERS * NUM_EXPERTS
# Slots of the device and of the host, in experts, and whether Triton runs the experts, which takes long here.
CASES = {
    "experts in memory, by torch": (2 * NUM_EXPERTS, ALL, False),
    "experts in memory, by Triton": (2 * NUM_EXPERTS, ALL, True),
    "experts on disk": (2 * NUM_EXPERTS + 3, NUM_EXPERTS, False),
    "slots for less than two layers": (2 * NUM_EXPERTS - 1, ALL, False),
}


@dataclass
class Recording:
    """Copies to the device and ends of layers in the order in which they were queued.

    The end of a layer is a number of an operation on the compute stream: its last one.
    """

    copies: list[tuple[int, Entry, int]] = field(default_factory=list)  # layer, entry, and layers that had ended
    ends: list[tuple[int, int]] = field(default_factory=list)  # layer and operation

    @contextmanager
    def on(self) -> Iterator[None]:
        copy, end = LayoutPool._copy_to_device, Lease.__exit__

        def note_copy(pool: LayoutPool, entry: Entry, source: Entry) -> None:
            self.copies.append((entry.key.layer, entry, len(self.ends)))
            copy(pool, entry, source)

        def note_end(lease: Lease, *error: Any) -> None:
            self.ends.append((next(iter(lease._rows)).layer, default_streams[CARD.index].count))
            end(lease, *error)

        LayoutPool._copy_to_device, Lease.__exit__ = note_copy, note_end  # type: ignore[method-assign]
        yield
        LayoutPool._copy_to_device, Lease.__exit__ = copy, end  # type: ignore[method-assign]

    def early(self) -> list[list[int]]:
        """Return for each layer of a step but the first its copies, and those that may begin before the last one ends.

        These were queued before that end, and wait for an earlier operation of the compute stream.
        """
        compute, found = default_streams[CARD.index], []
        for place, (layer, _) in enumerate(self.ends):
            if not layer:
                continue
            ended = self.ends[place - 1][1]
            of_layer = [(entry, count) for other, entry, count in self.copies if other == layer]
            queued_early = [entry.arrival.clock.get(compute, 0) for entry, count in of_layer if count < place]
            found.append([len(of_layer), sum(waits_for < ended for waits_for in queued_early)])
        return found


def run(model: Path, card_slots: int, host_slots: int, *, with_triton: bool, copies_ahead: bool) -> dict[str, Any]:
    """Return the logits of all steps, the copies of those with pieces of the prompt, and the races."""
    trunk = load_trunk(model, torch.float32, CARD, pool=ComputePool(1, triton_device=CARD if with_triton else None))
    on_card, on_host = (least_bytes(trunk.catalog, slots) for slots in (card_slots, host_slots))
    store = ExpertStore(trunk.catalog, on_host, device_bytes=on_card, device=CARD)
    counts.clear()
    experts = {layer: len(entry.experts) for layer, entry in trunk.catalog.layers.items()}
    prefetcher = make_prefetcher("gate", store, experts, trunk.gates)
    assert prefetcher is not None
    if copies_ahead:
        prefetcher.for_prompts = DevicePromptStream(store, experts, trunk.gates)
    if on_host == trunk.catalog.total_bytes:
        for layer, count in experts.items():
            for expert in range(count):
                with store.lease({store._state.keys[layer][expert]: 1}) as lease:
                    list(lease)
        wait_until_idle(store)
    groups = trunk.facts.kv_groups
    cache, states = KVCache(groups, [NUM_BLOCKS] * len(groups), BLOCK, CARD), trunk.new_states(1)
    logits, early, first = [], [], 0
    for length in CHUNKS:
        ids = [(11 * (first + place)) % 100 + 3 for place in range(length)]
        chunk = SequenceChunk(ids, first, [list(range(NUM_BLOCKS))] * len(groups), slot=0, num_prompt=sum(CHUNKS))
        recording = Recording()
        with recording.on():
            output = trunk.forward([chunk], cache, store, prefetcher, states=states)
            wait_until_idle(store)
        logits.append(output.logits.cpu())
        if length > 1:
            early.append(recording.early())
        first += length
    store.check_integrity()
    store.close()
    return {"logits": torch.cat(logits), "early": early, "races": dict(counts.races)}


def compare(model: Path, card_slots: int, host_slots: int, *, with_triton: bool) -> dict[str, Any]:
    plain, ahead = (
        run(model, card_slots, host_slots, with_triton=with_triton, copies_ahead=ahead) for ahead in (False, True)
    )
    return {
        "equal": torch.equal(plain["logits"], ahead["logits"]),
        "races": plain["races"] | ahead["races"],
        "without": plain["early"],
        "ahead": ahead["early"],
    }


if __name__ == "__main__":
    install()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = save_checkpoint(qwen3_moe(NUM_LAYERS), Path(folder) / "model", torch.float32)
        for name in sys.argv[1:] or CASES:
            *slots, by_triton = CASES[name]
            print(json.dumps({"name": name, **compare(checkpoint, *slots, with_triton=by_triton)}), flush=True)
