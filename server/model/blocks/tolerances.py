"""Tolerances of trials, by the dtype in which the modules compute."""

from __future__ import annotations

import torch

TOLERANCES = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 4e-2}  # relative to the largest or the norm
