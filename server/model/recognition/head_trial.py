"""Finds what a model's head multiplies its logits by, by a trial of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from transformers import PreTrainedModel

from server.kernels.native.library import Kernels
from server.kernels.native.structures.layers import HeadCall
from server.model.blocks.capture import Capture
from server.model.blocks.errors import UnsupportedLayerError
from server.model.blocks.tolerances import TOLERANCE
from server.model.native_layers.head import Head, build_head
from server.model.recognition.scales import NamedFactors


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


def cap_logits(outputs: torch.Tensor, head: HeadCall) -> list[torch.Tensor]:
    """Return logits for the outputs of a head's module, as the kernels compute them.

    There are two, as the factor that the kernels multiply logits by may be one of the module's input.
    """
    cap, found = float(head.softcap), []
    for scale in (head.scale, 1.0):
        logits = outputs[..., : head.vocabulary] * scale
        found.append(torch.tanh(logits / cap) * cap if cap else logits)
    return found
