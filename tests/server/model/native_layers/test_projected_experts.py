"""Experts whose rows are narrower than the hidden states have projections around them."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.kernels.compute_pool import ComputePool
from server.kernels.native.available import availability
from tests.checkpoints import save_checkpoint
from tests.families import make_config
from tests.server.model.native_layers.test_native_layers import assert_native_layers_give_what_the_modules_give

pytestmark = pytest.mark.skipif(not availability().runnable, reason="the native kernels were not built")


def test_latent_experts_beside_a_shared_one_give_what_modules_give(tmp_path: Path, pool: ComputePool) -> None:
    config = make_config("nemotron_h")
    config.moe_latent_size = 16
    assert_native_layers_give_what_the_modules_give(save_checkpoint(config, tmp_path), pool)
