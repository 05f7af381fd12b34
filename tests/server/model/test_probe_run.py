"""A first pass of one layer of each kind shows what one of all layers does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from server.kernels.compute_pool import ComputePool
from server.kernels.native.available import availability
from server.kernels.native.library import Kernels
from server.model.layer_kinds import LayerKinds
from server.model.modules.probe_run import ProbeRun
from server.model.trunk import passes
from server.model.trunk.trunk import Trunk
from server.model.trunk_loader import load_trunk
from tests.checkpoints import make_checkpoint

FAMILIES = ("qwen3_moe", "deepseek_v2", "qwen3_next", "jamba", "longcat_flash", "minimax_m3_vl_text")

pytestmark = pytest.mark.skipif(not availability().runnable, reason="the native kernels were not built")


def pass_of_all_layers(*args: Any, is_native: bool, **options: Any) -> ProbeRun:
    del is_native
    return ProbeRun(*args, **options)


def found_in(folder: Path) -> Mapping[str, Any]:
    trunk = load_trunk(folder, torch.float32, pool=ComputePool(1, Kernels(1)))
    assert isinstance(trunk, Trunk)
    assert trunk.is_invariant, "it runs through the modules"
    assert LayerKinds(trunk.model).count < len(LayerKinds(trunk.model).layer_of), "no layer is like another"
    routers = {layer: router.names for layer, router in trunk.routers.items()}
    return {"facts": trunk.facts, "routers": routers, "adaptable": trunk.adaptable, "gates": list(trunk.gates)}


@pytest.mark.parametrize("family", FAMILIES)
def test_one_layer_of_each_kind_shows_what_all_layers_show(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_checkpoint(family, tmp_path / "tiny")
    found = found_in(folder)
    monkeypatch.setattr(passes, "ProbeRun", pass_of_all_layers)
    assert found == found_in(folder)
