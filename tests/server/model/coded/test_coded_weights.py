"""Coded linear layers of a trunk, and coded experts: fewer bytes, and the bits of plain ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from expert_store import ExpertKey, ExpertStore
from server.inspection.memory_fit import needs_of_summary
from server.inspection.model_summary import summarise_model
from server.kernels.compute_pool import ComputePool
from server.kernels.expert import dequantised
from server.kernels.formats import coded_bfloat16
from server.kernels.native.available import availability
from server.kernels.native.library import Kernels
from server.model.attention.kv_cache import KVCache
from server.model.blocks.errors import UnsupportedLayerError
from server.model.coded import experts as coded_experts
from server.model.coded.linears import code_loaded, linears_to_code
from server.model.quantised.linear import QuantisedLinear
from server.model.recognition import find_program
from server.model.recognition.recognise import Recognition
from server.model.step import SequenceChunk
from server.model.trunk.trunk import Trunk
from server.model.trunk_loader import load_trunk
from server.settings import ServeSettings
from tests.checkpoints import load_transformers_model, save_checkpoint
from tests.family_divergence import wide_config

BLOCK = 16
INPUTS_FIRST = ("gpt_oss", "llama4")
TEXT = [5, 9, 300, 12, 7, 41, 8, 99, 3, 640, 11, 2]

pytestmark = pytest.mark.skipif(not availability().runnable, reason="the native kernels were not built")


@pytest.fixture(autouse=True)
def gains(monkeypatch: pytest.MonkeyPatch) -> None:
    """Code weights at every level, on any machine, and those of small models."""
    monkeypatch.setattr(Kernels, "gains_from_codes", True)
    monkeypatch.setattr(coded_bfloat16, "LEAST_BYTES", 0)


def config_of(name: str) -> Any:
    """Return a family's config with few and narrow experts; those stored inputs first keep their sizes."""
    config = wide_config(name)
    sizes = {"num_experts": 16, "n_routed_experts": 16, "moe_intermediate_size": 128}
    for field, size in sizes.items():
        if hasattr(config, field) and name not in INPUTS_FIRST:
            setattr(config, field, size)
    return config


def load(folder: Path) -> Trunk:
    trunk = load_trunk(folder, torch.bfloat16, pool=ComputePool(1, Kernels(1)))
    assert isinstance(trunk, Trunk)
    return trunk


def count(trunk: Trunk, kind: type[nn.Module]) -> int:
    return sum(type(module) is kind for module in trunk.model.modules())


def logits(trunk: Trunk) -> torch.Tensor:
    """Return logits of a prompt and of three tokens after it."""
    groups = trunk.facts.kv_groups
    cache, states = KVCache(groups, [2] * len(groups), BLOCK), trunk.new_states(1)
    store = ExpertStore(trunk.catalog, trunk.catalog.total_bytes)
    try:
        found = []
        for first, end in ((0, 9), (9, 10), (10, 11), (11, 12)):
            chunk = SequenceChunk(TEXT[first:end], first, [[0, 1]] * len(groups), num_logits=end - first, slot=0)
            found.append(trunk.forward([chunk], cache, store, None, states).logits.clone())
        return torch.cat(found)
    finally:
        store.close()


@pytest.mark.parametrize("family", ["qwen3_moe", "deepseek_v3", "qwen3_5_moe", "gemma4", "gpt_oss", "llama4"])
def test_logits_are_those_of_plain_weights(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(config_of(family), tmp_path, torch.bfloat16)
    coded = load(tmp_path)
    monkeypatch.setattr(Kernels, "gains_from_codes", False)
    plain = load(tmp_path)
    assert count(coded, QuantisedLinear)
    assert coded.nbytes < 0.95 * plain.nbytes
    assert coded.catalog.total_bytes < 0.82 * plain.catalog.total_bytes
    assert coded.catalog.stored_bytes == plain.catalog.stored_bytes == plain.catalog.total_bytes
    assert coded.facts.program == plain.facts.program
    found, expected = logits(coded), logits(plain)
    if family in INPUTS_FIRST:  # coded outputs first, so sums differ, and with them at times the chosen experts
        assert (found - expected).abs().max() < 0.05 * (expected.max() - expected.min())
    else:
        assert torch.equal(found, expected)


def test_inspect_plans_with_the_experts_as_they_are_kept(tmp_path: Path) -> None:
    save_checkpoint(config_of("qwen3_moe"), tmp_path, torch.bfloat16)
    summary = summarise_model(str(tmp_path), ServeSettings(dtype="bfloat16"), torch.device("cpu"))
    served = load(tmp_path).catalog
    assert served.stored_bytes == summary.catalog.total_bytes > summary.kept.total_bytes == served.total_bytes
    assert needs_of_summary(summary).catalog is summary.kept


@pytest.mark.parametrize("family", INPUTS_FIRST)
def test_coded_layers_beside_plain_experts_keep_their_bits(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(config_of(family), tmp_path, torch.bfloat16)
    monkeypatch.setattr(coded_experts, "MOST_BYTES", 0)
    coded = load(tmp_path)
    monkeypatch.setattr(Kernels, "gains_from_codes", False)
    assert count(coded, QuantisedLinear)
    assert torch.equal(logits(coded), logits(load(tmp_path)))


def unlike_any(*_: object) -> Recognition:
    raise UnsupportedLayerError("it is not to run natively")


def test_layers_that_modules_run_become_plain_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(config_of("qwen3_moe"), tmp_path, torch.bfloat16)
    stored = dict(load_transformers_model(tmp_path, torch.bfloat16).named_parameters())
    monkeypatch.setattr(find_program, "recognise", unlike_any)
    trunk = load(tmp_path)
    assert not count(trunk, QuantisedLinear)
    weights = {name: weight for name, weight in trunk.model.named_parameters() if weight.ndim > 1}
    assert len(weights) > 8
    assert all(torch.equal(weight, stored[name]) for name, weight in weights.items())


def test_layers_of_which_little_would_be_saved_stay_plain(tmp_path: Path) -> None:
    model, kernels = (
        load_transformers_model(save_checkpoint(config_of("qwen3_moe"), tmp_path), torch.bfloat16),
        Kernels(1),
    )
    one, other = (model.get_submodule(f"model.layers.{layer}.self_attn.o_proj") for layer in (0, 1))
    with torch.no_grad():
        one.weight[:, ::70] *= 1e-9  # so one block in each of a row's inputs spans more than 14 powers of two
    code_loaded(linears_to_code(model, kernels), kernels)
    assert (type(one), type(other)) == (nn.Linear, QuantisedLinear)


def test_experts_keep_their_bits_whatever_was_in_their_slot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_transformers_model(save_checkpoint(config_of("qwen3_moe"), tmp_path), torch.bfloat16)
    with torch.no_grad():  # an expert with more plain blocks than slots have room for, between two that were tried
        model.model.layers[0].mlp.experts.down_proj[1, :, ::70] *= 1e-9
    model.save_pretrained(tmp_path)
    coded = load(tmp_path)
    monkeypatch.setattr(Kernels, "gains_from_codes", False)
    plain = load(tmp_path)
    found = []
    for trunk in (coded, plain):
        store = ExpertStore(trunk.catalog, 2 * trunk.catalog.layout(0).slot_bytes)
        try:
            found.extend(down_proj(store, ExpertKey(0, expert)) for expert in (0, 1, 2, 3, 1, 4, 5))
        finally:
            store.close()
    assert all(torch.equal(one, other) for one, other in zip(found[:7], found[7:], strict=True))


def down_proj(store: ExpertStore, key: ExpertKey) -> torch.Tensor:
    """Return a matrix of an expert in float32."""
    with store.lease({key: 1}) as lease:
        for _, weights in lease:
            decoded = dequantised(weights, "down_proj")
            return weights["down_proj"].float() if decoded is None else decoded
    raise AssertionError("the lease gave no expert")
