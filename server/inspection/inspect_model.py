"""Makes the report of `greenroom inspect`."""

from __future__ import annotations

import time
from typing import Any

import psutil
import torch

from expert_store import is_on_disk
from server.device import find_device, is_gpu
from server.inspection.bandwidth import (
    begin_matrix,
    measure_copy,
    measure_disk,
    measure_memory,
    measure_record_gain,
    temporary_experts,
)
from server.inspection.download_time import predict_download
from server.inspection.memory_fit import fit_memory
from server.inspection.model_summary import summarise_model
from server.inspection.report import as_object
from server.inspection.throughput_bound import Bandwidths
from server.model.transformers_output import silence_transformers
from server.settings import ServeSettings


def inspect_model(model: str | None, settings: ServeSettings, link: float | None = None) -> dict[str, Any]:
    """Return the object that ``greenroom inspect --json`` prints.

    Args:
        link: bytes a second of a link over which the model would be downloaded.

    Raises:
        ModelError, ExpertStoreError: the model could not be served either, or can't be summary.
        SettingsError: the device can't be used.
        OSError: a temporary file for measuring the disk can't be written.
    """
    silence_transformers()
    torch.set_num_threads(settings.threads or torch.get_num_threads())
    device, matrix = find_device(settings.device), begin_matrix()
    summary = summarise_model(model, settings, device)
    plan = fit_memory(summary, settings, device)
    start_seconds = time.time() - psutil.Process().create_time()  # a server needs as long for imports and headers
    if summary.has_experts and is_on_disk(summary.catalog):  # from a server, each read would be a download
        disk, record_gain = measure_disk(summary.catalog), measure_record_gain(summary.catalog)
    else:
        record_gain = None
        with temporary_experts(next(iter(summary.catalog.layouts))) as catalog:
            disk = measure_disk(catalog)
    copy = measure_copy(device) if is_gpu(device) else None
    memory = measure_memory(device, matrix.result())
    report = as_object(summary, plan, Bandwidths(memory, disk, copy, record_gain))
    return report | {"download": None if link is None else predict_download(summary, link, start_seconds)}
