"""From the bodies of other dialects to a ``ChatBody``, and its complaints back into their words."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from server.api.errors import APIError, InvalidRequestError, api_error
from server.api.validation import first_problem
from server.engine.request import EngineError

Model = TypeVar("Model", bound=BaseModel)

# Parameters of chat completions that every dialect takes, under the same names.
EXTRA_SAMPLING_FIELDS = frozenset(
    {
        "top_k",
        "min_p",
        "repetition_penalty",
        "presence_penalty",
        "frequency_penalty",
        "logit_bias",
        "seed",
        "stop_token_ids",
        "ignore_eos",
        "min_tokens",
        "priority",
        "timeout",
    }
)


def validated(model: type[Model], value: object, place: str) -> Model:
    """A part of a body that stands at ``place`` in it, such as ``input[0]``.

    Raises:
        InvalidRequestError: it is none of this model, and what is wrong with it.

    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise _invalid(error, (place, *error.errors()[0]["loc"])) from error


@contextmanager
def in_words_of(names: Mapping[str, str]) -> Iterator[None]:
    """For work with a ``ChatBody``: what is raised names the fields of another dialect.

    Args:
        names: of the dialect's fields by those of ``ChatBody``.

    Raises:
        APIError: for every error that a client may see.

    """
    try:
        yield
    except ValidationError as error:
        place = error.errors()[0]["loc"]
        # What is inside a field is not one to one with what the dialect has for it.
        in_its_words = (names[str(place[0])],) if place and place[0] in names else place
        raise _invalid(error, in_its_words) from error
    except APIError as error:
        _rename(error, names)
        raise
    except EngineError as error:
        known = api_error(error)
        _rename(known, names)
        raise known from error


def split_extra(extra: Mapping[str, Any] | None) -> tuple[dict[str, Any], list[str]]:
    """Fields that a dialect does not name itself: those of sampling that are passed on, and names that nobody knows."""
    given = extra or {}
    passed = {name: value for name, value in given.items() if name in EXTRA_SAMPLING_FIELDS}
    return passed, [name for name in given if name not in passed]


def _invalid(error: ValidationError, place: Sequence[str | int]) -> InvalidRequestError:
    """What is wrong with something that stands at ``place`` in the body."""
    return InvalidRequestError(*first_problem([{**error.errors()[0], "loc": ("body", *place)}]))


def _rename(error: APIError, names: Mapping[str, str]) -> None:
    for name, other in names.items():
        error.message = error.message.replace(f"'{name}'", f"'{other}'")
    error.param = names.get(error.param or "", error.param)
