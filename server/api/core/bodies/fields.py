"""Types of fields that the bodies of several dialects have.

The ValueError of a validator says what the value must be; ``server.api.core.errors.validation`` puts the field's name
before it.
"""

from typing import Annotated

from pydantic import AfterValidator, PlainValidator

MAX_INT32 = 2**31 - 1
MAX_STOPS = 16
MAX_STOP_CHARACTERS = 1024


def is_encodable(text: str) -> bool:
    """Return False for half a surrogate pair: JSON can carry one, but no tokenizer takes it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def encodable(text: str) -> str:
    if not is_encodable(text):
        raise ValueError("must be valid Unicode, without half a surrogate pair")
    return text


def list_of_stops(value: object) -> list[str]:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or len(stops) > MAX_STOPS:
        raise ValueError(f"must be a string or a list of at most {MAX_STOPS} strings")
    if not all(isinstance(stop, str) and stop and is_encodable(stop) for stop in stops):
        raise ValueError("must hold valid Unicode strings only, none of them empty")
    if any(len(stop) > MAX_STOP_CHARACTERS for stop in stops):
        raise ValueError(f"must hold strings of at most {MAX_STOP_CHARACTERS} characters")
    return stops


def only(*neutral: object, why: str = "is not supported by this version of Greenroom: leave it out") -> PlainValidator:
    """Accept only values that ask for nothing, for a parameter that this version knows but does not implement."""
    accepted = [(type(value), value) for value in neutral]

    def check(value: object) -> object:
        if (type(value), value) not in accepted:
            raise ValueError(why)
        return value

    return PlainValidator(check)


Text = Annotated[str, AfterValidator(encodable)]
Stops = Annotated[list[str], PlainValidator(list_of_stops, json_schema_input_type=str | list[str])]
