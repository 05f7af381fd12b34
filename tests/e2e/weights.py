"""Folders with expert variants and LoRA adapters of the bundled model."""

from __future__ import annotations

import re
from pathlib import Path

from server.model.checkpoint.locate import BUNDLED
from tests.adapters import make_adapter
from tests.server.model.variants import other, read_tensors, save_variant


def make_weights(folder: Path) -> tuple[str, ...]:
    """Write the variant ``law`` and the adapters ``code`` and ``poems``; return the flags that serve their folders."""
    experts, adapters = folder / "experts", folder / "adapters"
    changed = other(read_tensors(BUNDLED), lambda name: re.search(r"layers\.5\.mlp\.experts\.", name) is not None, 0)
    experts.mkdir()
    save_variant(experts / "law", changed)
    for seed, name in enumerate(("code", "poems")):
        make_adapter(BUNDLED, adapters / name, seed=seed)
    return "--experts-dir", str(experts), "--adapters-dir", str(adapters)
