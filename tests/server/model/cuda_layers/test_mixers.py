"""Recurrent mixers run steps of single tokens by kernels, with the results and states of their modules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import GraniteMoeHybridConfig, Lfm2MoeConfig, NemotronHConfig, Qwen3_5MoeTextConfig, Qwen3NextConfig
from transformers.models.granitemoehybrid.modeling_granitemoehybrid import GraniteMoeHybridMambaLayer
from transformers.models.lfm2_moe.modeling_lfm2_moe import Lfm2MoeShortConv
from transformers.models.nemotron_h.modeling_nemotron_h import NemotronHMamba2Mixer
from transformers.models.qwen3_5_moe.modeling_qwen3_5_moe import Qwen3_5MoeGatedDeltaNet
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextGatedDeltaNet

from server.kernels.triton import available
from server.kernels.triton.available import has_driver
from server.model.blocks.cuda import CudaMixer, CudaPlace
from server.model.blocks.errors import UnsupportedLayerError
from server.model.blocks.gated_delta_net.parts import GatedDeltaNetParts
from server.model.blocks.mamba2.parts import Mamba2Parts
from server.model.blocks.mixer import MixerParts
from server.model.blocks.short_convolution.parts import ShortConvolutionParts
from server.model.recurrent.recurrent_modules import (
    SplitForward,
    StateProbe,
    recurrent_batches,
    split_recurrent_modules,
)
from server.model.recurrent.states import StateCache, StateShapes, StepStates
from server.model.step import SequenceChunk

DEVICE = torch.device("cuda" if has_driver() else "cpu")
HIDDEN, SLOTS, PROBED = 24, 4, 5
PARTS: tuple[type[MixerParts], ...] = (GatedDeltaNetParts, Mamba2Parts, ShortConvolutionParts)
DELTA = {  # two tiles of values, and sizes that are no powers of two
    "hidden_size": HIDDEN, "num_hidden_layers": 1, "layer_types": ["linear_attention"], "linear_num_key_heads": 2,
    "linear_num_value_heads": 4, "linear_key_head_dim": 12, "linear_value_head_dim": 40,
}  # fmt: skip
KINDS: dict[str, Callable[[], nn.Module]] = {
    "gated delta net": lambda: Qwen3_5MoeGatedDeltaNet(Qwen3_5MoeTextConfig(**DELTA), 0),
    "gated delta net, projections by key head": lambda: Qwen3NextGatedDeltaNet(Qwen3NextConfig(**DELTA), 0),
    "Mamba-2": lambda: GraniteMoeHybridMambaLayer(
        GraniteMoeHybridConfig(
            hidden_size=HIDDEN, mamba_n_heads=4, mamba_d_head=12, mamba_n_groups=1, mamba_d_state=20, mamba_expand=2,
            num_hidden_layers=1, layer_types=["mamba"],
        ),
        0,
    ),
    "Mamba-2, norms in groups": lambda: NemotronHMamba2Mixer(
        NemotronHConfig(
            hidden_size=HIDDEN, mamba_num_heads=4, mamba_head_dim=12, n_groups=2, ssm_state_size=20,
            use_conv_bias=False, num_hidden_layers=1, layers_block_type=["mamba"],
        ),
        0,
    ),
    "short convolution": lambda: Lfm2MoeShortConv(
        Lfm2MoeConfig(hidden_size=HIDDEN, num_hidden_layers=1, layer_types=["conv"], conv_L_cache=3), 0
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Triton's kernels run, by its interpreter where there is no GPU."""
    monkeypatch.setattr(available, "missing", lambda _: None)


def for_cuda(module: nn.Module, states: StateShapes) -> CudaMixer:
    parts = next(found for kind in PARTS if (found := kind.find(module, keeps_state=True)) is not None)
    return parts.for_cuda(parts.declares("mixer"), CudaPlace(DEVICE, None, states, shares_keys=False))


class Mixer:
    """One mixer, which runs steps."""

    def __init__(self, kind: str):
        torch.manual_seed(0)
        self.module = KINDS[kind]()
        for parameter in self.module.parameters():
            nn.init.normal_(parameter, std=0.3)
        self.module.requires_grad_(False).to(DEVICE)
        probe, parent = StateProbe(), nn.Sequential(self.module)
        with probe.track_modules(parent):
            self.module(torch.randn(1, PROBED, HIDDEN, device=DEVICE), cache=probe)
        split_recurrent_modules(probe.calls, PROBED)
        self.shapes = probe.shapes
        for_cuda(self.module, probe.shapes).install()
        forward: Any = self.module.forward
        assert isinstance(forward, SplitForward)
        self.split = forward

    def step(self, chunks: Sequence[SequenceChunk], hidden: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return the output of a step, and the states after it in all rows."""
        cache = StateCache(self.shapes, SLOTS, DEVICE, num_double=SLOTS)
        generator = torch.Generator().manual_seed(1)
        for key in self.shapes:
            tensor = cache.tensor(key)
            tensor.copy_(torch.randn(tensor.shape, generator=generator))
        states = StepStates(recurrent_batches(chunks, DEVICE, cache), cache=cache)
        output = self.module(hidden, cache=states)
        return output, [cache.tensor(key) for key in self.shapes]


CHUNKS = [SequenceChunk([1], 6, [], slot=3), SequenceChunk([1] * 3, 0, [], slot=0), SequenceChunk([1], 9, [], slot=1)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_by_kernels_has_the_output_and_states_of_the_module(kind: str) -> None:
    mixer = Mixer(kind)
    assert mixer.split.fused is not None
    hidden = torch.randn(1, 5, HIDDEN, device=DEVICE)
    found = mixer.step(CHUNKS, hidden)
    mixer.split.fused = None
    expected = mixer.step(CHUNKS, hidden)
    for own, other in zip((found[0], *found[1]), (expected[0], *expected[1]), strict=True):
        assert float((own - other).abs().max()) < 1e-5 * float(other.abs().max())


def test_a_mixer_with_an_adapter_runs_as_its_module() -> None:
    mixer = Mixer("short convolution")
    hidden = torch.randn(1, 1, HIDDEN, device=DEVICE)
    before, _ = mixer.step(CHUNKS[2:], hidden)
    mixer.module.in_proj.register_forward_hook(lambda _module, _inputs, output: 2 * output)
    after, _ = mixer.step(CHUNKS[2:], hidden)
    assert not torch.allclose(before, after)


def test_a_mixer_with_states_of_another_shape_has_no_kernel() -> None:
    mixer = Mixer("Mamba-2")
    states = {key: replace(shape, shape=shape.shape[::-1]) for key, shape in mixer.shapes.items()}
    with pytest.raises(UnsupportedLayerError, match="states"):
        for_cuda(mixer.module, states)
