"""The tolerance of trials."""

from __future__ import annotations

TOLERANCE = 1e-4  # of results in float32, relative to the largest or the norm
