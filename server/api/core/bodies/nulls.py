"""Values of null in the bodies of requests: each stands for a field that is left out."""

from pydantic import BaseModel, model_validator


def without_nulls(value: object) -> object:
    return {name: each for name, each in value.items() if each is not None} if isinstance(value, dict) else value


class NullableBody(BaseModel):
    """A body in which null leaves a field out."""

    @model_validator(mode="before")
    @classmethod
    def leave_out_nulls(cls, body: object) -> object:
        return without_nulls(body)
