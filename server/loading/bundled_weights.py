"""Finds the adapters and variants that come with the bundled model, which are the defaults when it is served."""

from __future__ import annotations

from pathlib import Path

from server.model.checkpoint.locate import BUNDLED, CLASSIFIER
from server.setting_values import NamedPath
from server.settings import ServeSettings

ADAPTERS, VARIANTS = BUNDLED.parent / "adapters", BUNDLED.parent / "variants"


def chosen_model(model: str | None, settings: ServeSettings) -> str | None:
    """Return the model to serve: the bundled classifier, if none is named and one that classifies is wanted."""
    return str(CLASSIFIER) if model is None and settings.model_type == "classify" else model


def with_bundled_adapters(model: str | None, settings: ServeSettings) -> ServeSettings:
    """Return settings that load the bundled adapters at start.

    They are the same as before if a model is named, if adapters or their folder are, or if adapters get no memory.
    """
    if model is not None or settings.serves_adapters or settings.adapter_memory.nbytes == 0 or not ADAPTERS.is_dir():
        return settings
    found = tuple(NamedPath(path.name, str(path)) for path in sorted(ADAPTERS.iterdir()) if path.is_dir())
    return settings.model_copy(update={"adapters_dir": ADAPTERS, "adapter": found})


def variants_folder(model: str | None, settings: ServeSettings) -> Path | None:
    """Return the folder below which variants may be loaded; for the bundled model, that of its variants by default."""
    is_default = model is None and settings.experts_dir is None and VARIANTS.is_dir()
    return VARIANTS if is_default else settings.experts_dir
