"""Limits of heads and taps that tokens change are recognised by what their modules compute."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers.models.inkling2.modeling_inkling2 import (
    Inkling2BlockAttentionResidual,
    Inkling2DynamicShortConvolution,
    Inkling2ScaledL2Clip,
)

from server.model.blocks.block_attention import BlockAttentionParts
from server.model.blocks.grouped_attention.head_limits import HeadLimit
from server.model.blocks.grouped_attention.token_convolution import TokenConvolution
from tests.families import make_config

HEADS, DIM, HIDDEN, WIDTH, LIMIT = 3, 4, 16, 4, 2.0


def clip() -> nn.Module:
    return Inkling2ScaledL2Clip(HEADS, DIM, LIMIT)


def convolution() -> nn.Module:
    return Inkling2DynamicShortConvolution(HEADS * DIM, HIDDEN, HEADS, WIDTH, 0, 0)


def attention() -> nn.Module:
    return Inkling2BlockAttentionResidual(make_config("inkling2_text"))


def of_clip(module: nn.Module) -> Any:
    return HeadLimit.find(module, DIM)


@pytest.mark.parametrize(
    ("make", "find"),
    [(clip, of_clip), (convolution, TokenConvolution.find), (attention, BlockAttentionParts.find)],
)
def test_a_module_with_another_result_is_none(make: Callable[[], nn.Module], find: Callable[[Any], Any]) -> None:
    module: Any = make()
    assert find(module) is not None
    forward = type(module).forward

    def other(self: Any, *args: Any) -> Any:
        found = forward(self, *args)
        return tuple(each * 1.01 for each in found) if isinstance(found, tuple) else found * 1.01

    module.__class__ = type("Other", (type(module),), {"forward": other})
    assert find(module) is None


def test_a_token_s_taps_come_after_those_of_all_tokens_with_the_input_s_own() -> None:
    module: Any = convolution()
    with torch.no_grad():
        module.static_weight.copy_(torch.arange(WIDTH * HEADS * DIM).view(WIDTH, -1))
    found = TokenConvolution.find(module)
    assert found is not None
    wanted = module.static_weight.detach().flip(0)
    wanted[-1] += 1
    torch.testing.assert_close(found.weight, wanted * (2 * WIDTH + 1) ** -0.5)
