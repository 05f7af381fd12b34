"""Adapters that a request adds to its model: a field of all dialects."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from server.api.core.bodies.fields import Text

MAX_ADAPTERS = 16
MAX_WEIGHT = 16.0


class AdapterChoice(BaseModel):
    """An adapter and the factor of what it adds."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    name: Text
    weight: float = Field(1.0, ge=-MAX_WEIGHT, le=MAX_WEIGHT)


AdapterChoices = Annotated[list[AdapterChoice], Field(max_length=MAX_ADAPTERS)]
