"""From a model's name to the whole report."""

from __future__ import annotations

from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from server.device import find_device
from server.settings import ServeSettings

from .bandwidth import measure_copy, measure_disk, measure_memory, temporary_experts
from .bound import Bandwidths
from .report import as_object
from .survey import fit, survey


def inspect(model: str | None, settings: ServeSettings) -> dict[str, Any]:
    """What ``greenroom inspect --json`` prints.

    Raises:
        ModelError, ExpertStoreError: the model could not be served either, or can't be found.
        SettingsError: a budget or limit does not suit the model.
        OSError: no temporary file could be written to measure the disk with.
    """
    transformers_logging.set_verbosity_error()
    torch.set_num_threads(settings.threads or torch.get_num_threads())
    device = find_device(settings.device)
    found = survey(model, settings, device)
    plan = fit(found, settings, device)
    if found.has_experts:
        disk = measure_disk(found.catalog)
    else:
        with temporary_experts(next(iter(found.catalog.layouts))) as catalog:
            disk = measure_disk(catalog)
    copy = measure_copy(device) if device.type == "cuda" else None
    return as_object(found, plan, Bandwidths(measure_memory(device), disk, copy), settings.max_batched_tokens)
