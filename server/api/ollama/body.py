"""Parts that all bodies of Ollama's routes share."""

from functools import partial
from typing import Any

from pydantic import BaseModel, ConfigDict

from server.api.core.bodies.fields import Text
from server.api.core.bodies.nulls import NullableBody
from server.api.core.choice.adapter_choice import AdapterChoices
from server.api.core.service.body import JSON_TYPES, JsonBody
from server.api.core.service.service import Service

KEEPS_MODEL = "the model stays in memory until the server stops"

# Ollama does not look at the type, and its examples send that of curl.
OllamaBody = partial(JsonBody, types=JSON_TYPES | {"application/x-www-form-urlencoded", ""})


class OllamaModel(NullableBody, BaseModel):
    """A body or a part of one; null is the same as leaving a field out."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)


class RequestBody(OllamaModel):
    """Fields of every request that a model answers."""

    model: Text | None = None
    adapters: AdapterChoices = []
    keep_alive: Any = None

    def note_ignored(self, service: Service) -> None:
        """Log the fields that have no effect."""
        service.unknown_fields.note(self.model_extra or ())
        if self.keep_alive is not None:
            service.unknown_fields.note_known(["keep_alive"], KEEPS_MODEL)
