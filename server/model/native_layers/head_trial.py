"""Finds a model's head as the native kernels compute it, and compares its logits with the modules'."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import addressof
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from server.kernels.native.library import Kernels, impossible
from server.kernels.native.structures.layers import HeadCall
from server.kernels.native.structures.layers import Norm as NormSpec
from server.model.architecture import head_of, text_body
from server.model.blocks.capture import Capture
from server.model.blocks.errors import UnsupportedLayerError
from server.model.blocks.kept_tensors import KeptTensors
from server.model.blocks.linears import LINEARS, matrix_of
from server.model.blocks.norms import Norm, is_norm, norm_of
from server.model.blocks.streams import StreamMixParts, find_last
from server.model.blocks.tolerances import TOLERANCE
from server.model.native_layers.scales import NamedFactors


@dataclass(frozen=True)
class Head:
    """A model's head as the kernels compute it."""

    call: HeadCall
    streams: StreamMixParts | None  # what makes one row of a token's rows before it
    input_scale: float  # its module takes the kernels' normed rows times this
    keeps: Sequence[Any]  # owners of the memory that the call refers to


def find_head(model: PreTrainedModel, captured: Capture, kernels: Kernels, factors: NamedFactors) -> Head:
    """Return a model's head, after a trial of it.

    Args:
        captured: a pass over some tokens, with the modules' logits.
        kernels: that compute others.
        factors: that the model's config names.

    Raises:
        UnsupportedLayerError: the kernels compute other logits.
    """
    last = captured.layers[-1]
    built = build_head(model, last.hidden_size, last.num_streams)
    call, hidden = built.call, last.output.contiguous()
    count, size = len(hidden), last.hidden_size
    num_logits = captured.logits.shape[1]
    if num_logits > call.matrix.outputs:
        raise UnsupportedLayerError(f"its head gives {num_logits} logits")
    rows = np.arange(count, dtype=np.int32)
    logits, normed = (np.empty((count, length), dtype=np.float32) for length in (num_logits, size))
    call.hidden, call.rows = hidden.data_ptr(), rows.ctypes.data
    call.normed, call.logits = normed.ctypes.data, logits.ctypes.data
    call.num_rows = call.num_logits = count
    call.vocabulary, call.softcap, softcap = num_logits, 0.0, call.softcap
    kernels.head(call)
    found, wanted = torch.from_numpy(logits), captured.logits
    if softcap:
        wanted = torch.atanh((wanted.double() / softcap).clamp(-1, 1)).float() * softcap
    scale = float((found * wanted).sum() / found.square().sum())
    if not (found * scale - wanted).norm() <= TOLERANCE * wanted.norm():
        raise UnsupportedLayerError("its head differs from a linear layer on the normed states")
    call.scale, call.softcap = factors.nearest(scale), softcap
    scales = [1.0, float(call.scale)]
    if captured.head_rows is None or captured.head_rows.shape != normed.shape:
        return built
    states, given = torch.from_numpy(normed), captured.head_rows
    return replace(built, input_scale=min(scales, key=lambda by: float((states * by - given).norm())))


def build_head(model: PreTrainedModel, hidden_size: int, num_streams: int, found: Head | None = None) -> Head:
    """Return a model's head, but for what a trial finds.

    Args:
        hidden_size: numbers of a row.
        num_streams: rows of a token's residual stream; 0 if that is one row and nothing else.
        found: the head of the model's twin, after a trial.

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
    if found is None:
        return Head(call, last, 1.0, [kept, mix])
    call.scale, call.vocabulary = found.call.scale, matrix.outputs - found.call.matrix.outputs + found.call.vocabulary
    return Head(call, last, found.input_scale, [kept, mix])


def cap_logits(outputs: torch.Tensor, head: HeadCall) -> list[torch.Tensor]:
    """Return logits for the outputs of a head's module, as the kernels compute them.

    There are two, as the factor that the kernels multiply logits by may be one of the module's input.
    """
    cap, found = float(head.softcap), []
    for scale in (head.scale, 1.0):
        logits = outputs[..., : head.vocabulary] * scale
        found.append(torch.tanh(logits / cap) * cap if cap else logits)
    return found


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
