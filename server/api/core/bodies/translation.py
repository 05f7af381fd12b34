"""Helpers to translate bodies of other dialects to a ``ChatBody``, and the errors about it back."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from server.api.core.bodies.other_samplers import OTHER_SAMPLERS
from server.api.core.errors.api_errors import APIError, InvalidRequestError, api_error
from server.api.core.errors.validation import first_problem
from server.engine.interface import EngineError, JsonObject

Model = TypeVar("Model", bound=BaseModel)

# Fields of chat completions that every dialect takes, under the same names.
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
        "allowed_token_ids",
        "bad_words",
        "truncate_prompt_tokens",
        "structured_outputs",
        "guided_json",
        "guided_regex",
        "guided_choice",
        "guided_grammar",
        "json_schema",
        "grammar",
        "suffix",
        "best_of",
        "return_token_ids",
        "chat_template",
        "priority",
        "timeout",
        "adapters",
        "routing",
        "cache_salt",
    }
)

# The fields of a ``ChatBody`` with which the last message is continued.
CONTINUATION: JsonObject = {"add_generation_prompt": False, "continue_final_message": True}


def validated(model: type[Model], value: object, place: str) -> Model:
    """Validate a part of a body as ``model``; ``place`` is its path in the body, such as ``input[0]``.

    Raises:
        InvalidRequestError: the part is invalid; the message says why.

    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise _invalid(error, (place, *error.errors()[0]["loc"])) from error


@contextmanager
def translate_errors(names: Mapping[str, str]) -> Iterator[None]:
    """Make errors that are raised in this context name the fields of a dialect instead of those of ``ChatBody``.

    Args:
        names: names of ``ChatBody``'s fields, and what the dialect calls them.

    Raises:
        APIError: for every error that a client may see.

    """
    try:
        yield
    except ValidationError as error:
        place = error.errors()[0]["loc"]
        # The dialect's field may have other members, so its path ends with its own name.
        own_place = (names[str(place[0])],) if place and place[0] in names else place
        raise _invalid(error, own_place) from error
    except APIError as error:
        _rename(error, names)
        raise
    except EngineError as error:
        known = api_error(error)
        _rename(known, names)
        raise known from error


def split_extra(extra: Mapping[str, Any] | None) -> tuple[dict[str, Any], list[str]]:
    """Split a body's extra fields into sampling fields, which are passed on, and names of unknown fields.

    Those of other servers are passed on too: ``ChatBody`` knows which of them it ignores.
    """
    given = extra or {}
    passed = {name: value for name, value in given.items() if name in EXTRA_SAMPLING_FIELDS or name in OTHER_SAMPLERS}
    return passed, [name for name in given if name not in passed]


def _invalid(error: ValidationError, place: Sequence[str | int]) -> InvalidRequestError:
    """Return the error for a part of the body at ``place``."""
    return InvalidRequestError(*first_problem([{**error.errors()[0], "loc": ("body", *place)}]))


def _rename(error: APIError, names: Mapping[str, str]) -> None:
    for name, other in names.items():
        error.message = error.message.replace(f"'{name}'", f"'{other}'")
    error.param = names.get(error.param or "", error.param)
