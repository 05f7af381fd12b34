"""Checks a model at the last positions and with large logits, which a sample at the first positions does not show."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from server.model.architecture import head_of
from server.model.blocks.capture import Capture, capture
from server.model.blocks.errors import UnsupportedLayerError
from server.model.blocks.layer import NativeLayer
from server.model.blocks.mixer import relative_error
from server.model.modules.forward import Forward
from server.model.program import Target

LARGE = 4096.0  # of the logits in the trial; caps are smaller, and float16 holds it
TOLERANCE = 0.03  # of the norms of queries and keys, and of large logits: several times their rounding in bfloat16


def check_far(
    model: PreTrainedModel,
    forward: Forward,
    tokens: Sequence[int],
    *,
    near: Capture,
    longest: int,
    logits_of: Callable[[torch.Tensor], Sequence[torch.Tensor]],
    layers: Sequence[NativeLayer],
    keeps_states: bool = False,
) -> None:
    """Run the modules at the last positions, with large logits.

    Args:
        near: the same tokens at the first positions.
        longest: tokens of the longest sequence.
        logits_of: returns the logits that outputs of the model's head may give.
        layers: whose queries and keys are compared, if they have some.
        keeps_states: whether some of these keep recurrent states.

    Raises:
        UnsupportedLayerError: queries or keys are scaled by their positions, or logits are no multiple of the output
            of the head.
    """
    enlarged: list[torch.Tensor] = []

    def enlarge(_head: Any, _args: Any, output: torch.Tensor) -> torch.Tensor:
        enlarged.append(output * (LARGE / float(output.abs().max().clamp_min(1e-6))))
        return enlarged[-1]

    hook = head_of(model).register_forward_hook(enlarge)
    try:
        at_end = capture(model, forward, tokens, longest - len(tokens), keeps_states=keeps_states)
    finally:
        hook.remove()
    if not any(relative_error(at_end.logits, each) < TOLERANCE for each in logits_of(enlarged[-1][0].float())):
        raise UnsupportedLayerError("its large logits are capped, or changed in another way")
    for layer, before, after in zip(layers, near.layers, at_end.layers, strict=True):
        if layer.mixer.target is not Target.NATIVE or not before.queries.numel():
            continue
        far = longest - len(tokens)
        scales = [layer.mixer.query_scales(range(begin, begin + len(tokens))) for begin in (far, 0)]
        growth = (scales[0] / scales[1]).abs()
        for name, known in (("queries", growth), ("keys", torch.ones(len(tokens)))):
            norms = getattr(before, name).norm(dim=-1), getattr(after, name).norm(dim=-1)  # (heads, tokens)
            ratio = float((norms[1] / (norms[0] * known).clamp_min(1e-20)).median())
            if not abs(ratio - 1) < TOLERANCE:
                raise UnsupportedLayerError(f"its {name} are scaled by their positions, by {ratio:.3g} at the last")
