"""Builds a model's head as the native kernels compute it."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import addressof
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from server.kernels.native.library import impossible
from server.kernels.native.structures.layers import HeadCall
from server.kernels.native.structures.layers import Norm as NormSpec
from server.model.architecture import head_of, text_body
from server.model.blocks.errors import UnsupportedLayerError
from server.model.blocks.kept_tensors import KeptTensors
from server.model.blocks.linears import LINEARS, matrix_of
from server.model.blocks.norms import Norm, is_norm, norm_of
from server.model.blocks.streams import StreamMixParts, find_last
from server.model.declarations.declaration import Declaration


@dataclass(frozen=True)
class Head:
    """A model's head as the kernels compute it."""

    call: HeadCall
    streams: StreamMixParts | None  # what makes one row of a token's rows before it
    input_scale: float  # its module takes the kernels' normed rows times this
    keeps: Sequence[Any]  # owners of the memory that the call refers to


def build_head(model: PreTrainedModel, hidden_size: int, num_streams: int, declared: Declaration | None = None) -> Head:
    """Return a model's head, but for what a trial finds.

    Args:
        hidden_size: numbers of a row.
        num_streams: rows of a token's residual stream; 0 if that is one row and nothing else.
        declared: the model; None for one of which a trial shows more.

    Raises:
        UnsupportedLayerError: the head is of another kind.
    """
    head, config, body = head_of(model), model.config.get_text_config(), text_body(model)
    if not isinstance(head, LINEARS):
        raise UnsupportedLayerError("its head is not a linear layer")
    norm = _final_norm(body, is_needed=not num_streams)
    last = find_last(body, num_streams) if num_streams else None
    kept = KeptTensors()
    mix = None if last is None else last.build(kept)
    matrix = matrix_of(head)
    has_other_norm = norm is not None and len(norm.weight) != hidden_size
    if impossible("greenroom_check_matrix", matrix) or matrix.inputs != hidden_size or has_other_norm:
        raise UnsupportedLayerError("its head does not fit its hidden states")
    call = HeadCall(
        matrix=matrix,
        bias=kept.keep(head.bias),
        norm=NormSpec() if norm is None else kept.norm(norm),
        streams=None if mix is None else addressof(mix),
        hidden_size=hidden_size,
        vocabulary=matrix.outputs,
        scale=1.0,
        softcap=getattr(config, "final_logit_softcapping", None) or 0.0,
        is_exact=1,
    )
    if declared is None:
        return Head(call, last, 1.0, [kept, mix])
    call.scale, call.vocabulary = declared.logits_scale, matrix.outputs - declared.unused_logits
    return Head(call, last, call.scale if declared.is_head_input_scaled else 1.0, [kept, mix])


def _final_norm(body: nn.Module, *, is_needed: bool) -> Norm | None:
    """Return the norm before the head, the body's only one; None if it has none, which is not needed."""
    norms = [each for each in body.children() if is_norm(each)]
    if not norms and not is_needed:
        return None
    if len(norms) != 1:
        raise UnsupportedLayerError(f"it has {len(norms)} norms besides those of its layers")
    found = norm_of(norms[0])
    assert found is not None
    return found
