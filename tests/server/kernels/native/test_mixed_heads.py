"""Attention with mixed heads, and routers with an MLP, have the results of their modules (ZAYA), at every level."""

from __future__ import annotations

from copy import deepcopy
from ctypes import addressof
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn
from transformers.models.zaya.modeling_zaya import ZayaAttention, ZayaRouter

from server.kernels.native.library import Kernels
from server.kernels.native.structures.layers import FeedForwardKind, LayerSpec, Mixture, NormKind, Router, RouterKind
from server.kernels.native.structures.layers import Norm as NormSpec
from server.kernels.native.structures.mixers import MixerKind, RopeKind
from server.model.blocks.grouped_attention.declaration import GroupedAttention
from server.model.blocks.grouped_attention.parts import GroupedAttentionParts
from server.model.blocks.kept_tensors import KeptTensors
from server.model.blocks.linears import matrix_of
from server.model.blocks.mixer import LayerPlace
from server.model.blocks.workspace import BLOCK, Workspace
from server.model.native_layers.router_mlp import RouterMlpParts
from server.model.step import SequenceChunk
from tests.families import make_config

TOKENS, HIDDEN, STATE_ROWS = 7, 32, 6


def module_of(kind: type[nn.Module], **changes: Any) -> Any:
    """Return a module of the second layer of a tiny ZAYA with random parameters."""
    config: Any = make_config("zaya")
    for name, value in {"router_hidden_size": 24, "_attn_implementation": "eager", **changes}.items():
        setattr(config, name, value)
    torch.manual_seed(0)
    module = kind(config, 1)
    with torch.no_grad():
        for value in (*module.parameters(), *module.buffers()):
            value.normal_(std=value.shape[-1] ** -0.5 if value.ndim > 1 else 1.0)
    return module.eval().requires_grad_(requires_grad=False)


def attended(module: Any, rows: torch.Tensor) -> torch.Tensor:
    """Return the results of an attention for one sequence in float64, without rotary positions."""
    given = rows[None].double()
    mask = torch.full((TOKENS, TOKENS), -torch.inf, dtype=torch.float64).triu(1)[None, None]
    angles = torch.ones(1, TOKENS, module.head_dim), torch.zeros(1, TOKENS, module.head_dim)
    positions = tuple(each.double() for each in angles)
    output: torch.Tensor = deepcopy(module).double()(given, {"causal": mask}, None, positions)[0]
    return output[0]


@pytest.mark.parametrize(
    "changes",
    [{}, {"cca_time0": 3, "cca_time1": 4, "attention_bias": True}, {"cca_time0": 1, "num_key_value_heads": 1}],
)
@pytest.mark.parametrize("bounds", [[0, TOKENS], [0, 1, 2, 5, TOKENS]])
def test_sequences_have_the_results_of_modules_in_any_chunks(
    kernels: Kernels, changes: dict[str, Any], bounds: list[int]
) -> None:
    module = module_of(ZayaAttention, **changes)
    parts = GroupedAttentionParts.find(module, keeps_state=False)
    assert parts is not None
    declared = GroupedAttention("self_attn", scaling=module.scaling, rope=RopeKind.NONE)
    mixer = parts.build(declared, LayerPlace(0, None, torch.float32))
    bound = mixer.for_trial(None, 2 * BLOCK)  # type: ignore[arg-type]  which only an indexer of pools reads
    states = [torch.full((STATE_ROWS, *shape.shape), torch.nan) for shape in mixer.states.values()]
    own = mixer._mixing, *mixer._convolutions
    assert own[0] is not None
    by_key = dict(zip(mixer.states, states, strict=True))
    own[0].spec.channels.states = by_key[next(iter(own[0].states))].data_ptr()
    for each in mixer._convolutions:
        each._spec.states = by_key[next(iter(each.states))].data_ptr()
    spec = LayerSpec(
        mixer=bound.address,
        mixer_kind=MixerKind.GROUPED_ATTENTION,
        feed_forward_kind=FeedForwardKind.NONE,
        residual_scale=1.0,
        output_scale=1.0,
    )
    workspace = Workspace(HIDDEN, 1, 1, 1, is_exact=True)
    rows, found = torch.randn(2, TOKENS, HIDDEN), torch.empty(2, TOKENS, HIDDEN)
    for number, (first, end) in enumerate(pairwise(bounds)):
        chunks = [SequenceChunk(range(end - first), first, [[sequence]]) for sequence in range(2)]
        moves = [(2 * i + (number + 1) % 2 if first else -1, 2 * i + number % 2) for i in range(2)]
        workspace.begin(chunks, 1, moves)
        given = rows[:, first:end].flatten(0, 1)
        workspace.hidden[:] = given.numpy()
        kernels.begin_layer(spec, workspace.call, 0)
        found[:, first:end] = (torch.from_numpy(workspace.hidden) - given).view(2, end - first, HIDDEN)
    wanted = torch.stack([attended(module, each) for each in rows])
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("are_carried", [False, True])
def test_a_router_chooses_and_carries_what_its_module_does(kernels: Kernels, are_carried: bool) -> None:
    module = module_of(ZayaRouter)
    module.balancing_biases.mul_(0.05)
    if not are_carried:
        del module.router_states_scale
        module.use_eda = False
    parts, kept = RouterMlpParts.find(module), KeptTensors()
    assert parts is not None
    router = Router(matrix=matrix_of(parts.matrix), kind=RouterKind.SOFTMAX_FIRST, top_k=1, num_groups=1, num_skips=1)
    router.mlp, router.correction = parts.build(kept), kept.keep(parts.correction)
    router.scale = router.logits_scale = 1.0
    mixture = Mixture(router=router, num_experts=len(parts.matrix.weight) - 1, experts_scale=1.0)
    ones = kept.keep(torch.ones(HIDDEN))
    spec = LayerSpec(
        inner_norm=NormSpec(ones, None, 0.0, NormKind.AFFINE),
        mixer_kind=MixerKind.NONE,
        feed_forward=addressof(mixture),
        feed_forward_kind=FeedForwardKind.EXPERTS,
    )
    count = 64
    workspace = Workspace(HIDDEN, 1, 1, mixture.num_experts, is_exact=True)
    workspace.begin([SequenceChunk(range(count), 0, [range(count // BLOCK)])], 1)
    rows, before = torch.randn(count, HIDDEN), torch.randn(count, parts.width)
    carried = before.clone()
    workspace.hidden[:], workspace.call.router_rows = rows.numpy(), carried.data_ptr()
    kernels.begin_layer(spec, workspace.call, 0)
    _, weights, chosen, after = deepcopy(module).double()(rows[None].double(), before[None].double())
    is_skipped = weights == 0
    assert is_skipped.any()
    found = torch.from_numpy(workspace.chosen(0, 1).astype("int64"))
    assert torch.equal(found, chosen.masked_fill(is_skipped, mixture.num_experts))
    torch.testing.assert_close(torch.from_numpy(workspace.weights(0, 1)).double(), weights, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(carried.double(), after[0], rtol=1e-4, atol=1e-5)
