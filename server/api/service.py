"""What the routes are given to work with."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from server.engine.request import GenerationEngine, TextCodec


@dataclass
class LoadedModel:
    """A model that answers requests."""

    name: str
    engine: GenerationEngine
    codec: TextCodec
    created: int = field(default_factory=lambda: int(time.time()))  # seconds since 1970


@dataclass
class Service:
    """The state of the server as the routes see it: ``model`` is None until it is loaded."""

    model: LoadedModel | None = None
    is_draining: bool = False

    @property
    def is_ready(self) -> bool:
        return self.model is not None and not self.is_draining and self.model.engine.is_alive
