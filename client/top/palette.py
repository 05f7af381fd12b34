"""Colours of the live view: those of the dashboard's dark theme, in ``server/web/style.css`` and ``panels.css``."""

from __future__ import annotations

from client.frames import DEVICE, DISK, HOST

Rgb = tuple[int, int, int]

TIER_RGB: dict[int, Rgb] = {DISK: (153, 138, 117), HOST: (89, 170, 248), DEVICE: (58, 214, 147)}
TIER_COLOURS = {DISK: "yellow", HOST: "blue", DEVICE: "green"}  # for 16 colours; each has a bright variant
# In the order of the dashboard's bar.
MEMORY_RGB: dict[str, Rgb] = {
    "trunk": (190, 149, 236),
    "process": (147, 166, 158),
    "step": (231, 145, 194),
    "requests": (117, 210, 221),
    "unaccounted": (255, 141, 128),
    "kv_cache": TIER_RGB[DEVICE],
    "adapters": (226, 193, 98),
    "experts": TIER_RGB[HOST],
}
OTHER_RGB: Rgb = (230, 238, 234)
