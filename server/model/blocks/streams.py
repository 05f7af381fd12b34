"""StreamParts: modules that mix the rows of a residual stream that has several rows a token (hyper-connections)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import nn

from server.kernels.native.linear import plain_matrix
from server.kernels.native.structures.layers import StreamMix
from server.model.architecture import decoder_layers
from server.model.blocks.block_attention import BlockAttentionParts, in_layer, starts_block
from server.model.blocks.errors import UnsupportedLayerError
from server.model.blocks.gated_streams import GatedStreamParts
from server.model.blocks.kept_tensors import KeptTensors
from server.model.blocks.linears import Linear, no_matrix
from server.model.blocks.norms import EPSILONS

if TYPE_CHECKING:
    from server.model.blocks.capture import LayerCapture

COUNT, EPSILON, ITERATIONS = "hc_mult", ("hc_eps", "eps"), "hc_sinkhorn_iters"  # attributes
MAGNITUDE = "hc_post_magnitude"  # attribute: of the weights of results
PARAMETERS = ("fn", "base", "scale"), ("hc_fn", "hc_base", "hc_scale")  # of a layer's part, and at the end of a model
NORM = "input_norm"
NUM_SCALES = 3  # for sums, for results, and from row to row
PARTS_OF_LAYER = 2  # the mixer and the feed-forward part


@dataclass(frozen=True)
class StreamParts:
    """The parts of a module that sums the rows of a token for a part of a layer, or for a model's head."""

    module: Any
    logits: nn.Parameter | None  # (outputs, rows * hidden); None: the sum is the mean
    bias: nn.Parameter | None
    scales: nn.Parameter | None
    num_streams: int
    is_last: bool  # nothing is added to the rows after it

    @classmethod
    def find(cls, module: Any) -> Self | None:
        """Return the parts of a child of a layer or of a model's body; None if it is something else."""
        found = dict(module.named_parameters())
        for names in PARAMETERS:
            if found.keys() == {*names} and hasattr(module, COUNT) and hasattr(module, NORM):
                logits, bias, scales = (found[name] for name in names)
                count = int(getattr(module, COUNT))
                is_last = len(scales) == 1
                outputs = count * (1 if is_last else len(scales) + (count - 1) * (len(scales) == NUM_SCALES))
                fits = logits.ndim == 2 and logits.shape[0] == len(bias) == outputs  # noqa: PLR2004
                return cls(module, logits, bias, scales, count, is_last) if fits else None
        return None

    def parameters(self) -> Iterator[nn.Parameter]:
        yield from (each for each in (self.logits, self.bias, self.scales) if each is not None)

    def places(self, first: int) -> Mapping[int, Linear]:
        """Return no linear layers that adapters add to: it has parameters alone."""
        del first
        return {}

    def build(self, kept: KeptTensors) -> StreamMix:
        """Describe it to the kernels.

        Args:
            kept: keeps its numbers.

        Raises:
            UnsupportedLayerError: its weights are of a type that the kernels do not read.
        """
        mix = StreamMix(logits=no_matrix(), num_streams=self.num_streams, is_last=int(self.is_last))
        if self.logits is None or self.bias is None or self.scales is None:
            return mix
        matrix = plain_matrix(self.logits)
        if matrix is None:
            raise UnsupportedLayerError(f"weights of its residual streams are {self.logits.dtype}")
        mix.logits, mix.bias = matrix, kept.keep(self.bias)
        mix.norm = kept.keep(torch.ones(self.logits.shape[1]))
        norm = getattr(self.module, NORM)
        mix.norm_epsilon = next(float(getattr(norm, name)) for name in EPSILONS if hasattr(norm, name))
        mix.epsilon = next(float(getattr(self.module, name)) for name in EPSILON if hasattr(self.module, name))
        mix.magnitude = float(getattr(self.module, MAGNITUDE, 2.0))
        for index, scale in enumerate(self.scales.tolist()):
            mix.scales[index] = scale
        if len(self.scales) == NUM_SCALES:
            mix.iterations = int(getattr(self.module, ITERATIONS))
        else:
            mix.result_epsilon = mix.epsilon
        return mix


StreamMixParts = StreamParts | GatedStreamParts | BlockAttentionParts


def find_streams(captured: LayerCapture) -> Sequence[StreamMixParts]:
    """Return what mixes the rows of a layer's residual stream, for its mixer and for its feed-forward part.

    Returns:
        Nothing for a layer with one row a token.

    Raises:
        UnsupportedLayerError: it has other rows.
    """
    found = [parts for each in captured.calls if (parts := stream_parts_of(each.module)) is not None]
    if captured.num_streams == 0 and not found:
        return []
    attending = [parts for parts in found if isinstance(parts, BlockAttentionParts)]
    if attending and len(attending) == len(found):
        return _attending(captured, attending)
    if len(found) != PARTS_OF_LAYER or any(parts.num_streams != captured.num_streams for parts in found):
        raise UnsupportedLayerError("its layers mix the rows of their residual stream in another way")
    return found


def _attending(captured: LayerCapture, found: Sequence[BlockAttentionParts]) -> Sequence[StreamMixParts]:
    """Return the parts of a layer that attend to kept rows, at their place in the model."""
    starts = starts_block(captured.layer)
    kept = [each.call.args[0].shape[-2] for each in captured.calls if each.module is found[-1].module]
    if len(found) > PARTS_OF_LAYER or len(kept) != 1:
        raise UnsupportedLayerError("its layers attend to the rows of their residual stream in another way")
    return in_layer(found, num_blocks=kept[0] - starts, starts=starts, norms=())


def find_last(body: nn.Module, num_streams: int) -> StreamMixParts:
    """Return what makes one row of a token's rows at the end of a model: a module, or the mean.

    Args:
        body: of the model.
        num_streams: rows of a token.

    Raises:
        UnsupportedLayerError: it is unknown.
    """
    parts = [parts for child in body.children() if (parts := stream_parts_of(child)) is not None]
    num_blocks = sum(starts_block(layer) for layer in decoder_layers(body) or ())
    found = [
        replace(each, num_blocks=num_blocks, is_last=True) if isinstance(each, BlockAttentionParts) else each
        for each in parts
        if each.is_last or isinstance(each, BlockAttentionParts)
    ]
    if not found:
        return StreamParts(None, None, None, None, num_streams, is_last=True)
    if len(found) != 1 or found[0].num_streams != num_streams:
        raise UnsupportedLayerError("the rows of its residual stream become one in another way")
    return found[0]


def stream_parts_of(module: Any) -> StreamMixParts | None:
    """Return the parts of a module that mixes the rows of a residual stream; None if it is something else."""
    return StreamParts.find(module) or GatedStreamParts.find(module) or BlockAttentionParts.find(module)
