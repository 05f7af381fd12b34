"""Types of the fields of request bodies.

A validator's ValueError says what the value must be; ``server.api.validation`` puts the field's name before it.
"""

from typing import Annotated

from pydantic import AfterValidator, Field, PlainValidator

from server.api.validation import quote

MAX_INT32 = 2**31 - 1
MAX_INT64 = 2**63 - 1
MAX_STOPS = 16
MAX_STOP_CHARACTERS = 1024
MAX_STOP_TOKENS = 1024
MAX_BIASES = 1024
MAX_BIAS = 100
MAX_LOGPROBS = 20

Prompt = str | list[int]


def is_encodable(text: str) -> bool:
    """False for half a surrogate pair, which JSON can carry and no tokenizer can."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def encodable(text: str) -> str:
    if not is_encodable(text):
        raise ValueError("must be valid Unicode, without half a surrogate pair")
    return text


def is_token_ids(value: object) -> bool:
    return isinstance(value, list) and all(type(token) is int and 0 <= token <= MAX_INT32 for token in value)


def list_of_prompts(value: object) -> list[Prompt]:
    """The four forms of a prompt are one: a list of texts, or of lists of token ids."""
    prompts = [value] if isinstance(value, str) or (value and is_token_ids(value)) else value
    if not isinstance(prompts, list) or not prompts:
        raise ValueError("must be a string, a list of token ids, or a list of several of either, and not be empty")
    are_texts = all(isinstance(prompt, str) and is_encodable(prompt) for prompt in prompts)
    if not are_texts and not all(map(is_token_ids, prompts)):
        raise ValueError("must hold valid Unicode strings only, or token ids from 0 only, or lists of token ids only")
    return prompts


def list_of_stops(value: object) -> list[str]:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or len(stops) > MAX_STOPS:
        raise ValueError(f"must be a string or a list of at most {MAX_STOPS} strings")
    if not all(isinstance(stop, str) and stop and is_encodable(stop) for stop in stops):
        raise ValueError("must hold valid Unicode strings only, none of them empty")
    if any(len(stop) > MAX_STOP_CHARACTERS for stop in stops):
        raise ValueError(f"must hold strings of at most {MAX_STOP_CHARACTERS} characters")
    return stops


def biases_by_token(value: object) -> dict[int, float]:
    """JSON has texts for keys; the tokens are numbers."""
    if not isinstance(value, dict) or len(value) > MAX_BIASES:
        raise ValueError(f"must be an object of at most {MAX_BIASES} token ids and their biases")
    biases: dict[int, float] = {}
    for token, bias in value.items():
        if not (token.isascii() and token.isdecimal() and int(token) <= MAX_INT32):
            raise ValueError(f"must have token ids for keys, but {quote(token)} is none")
        if type(bias) not in (int, float) or not -MAX_BIAS <= bias <= MAX_BIAS:
            raise ValueError(
                f"must hold numbers from -{MAX_BIAS} to {MAX_BIAS}, but that of {quote(token)} is {quote(bias)}"
            )
        biases[int(token)] = float(bias)
    return biases


def only(*neutral: object, why: str = "is not supported by this version of Greenroom: leave it out") -> PlainValidator:
    """For a parameter that this version knows but does not follow: a value that asks for nothing passes."""
    passes = [(type(value), value) for value in neutral]

    def check(value: object) -> object:
        if (type(value), value) not in passes:
            raise ValueError(why)
        return value

    return PlainValidator(check)


Text = Annotated[str, AfterValidator(encodable)]
Prompts = Annotated[
    list[Prompt],
    PlainValidator(list_of_prompts, json_schema_input_type=str | list[str] | list[int] | list[list[int]]),
]
Stops = Annotated[list[str], PlainValidator(list_of_stops, json_schema_input_type=str | list[str])]
LogitBias = Annotated[dict[int, float], PlainValidator(biases_by_token, json_schema_input_type=dict[str, float])]
TokenIds = Annotated[list[Annotated[int, Field(ge=0, le=MAX_INT32)]], Field(fail_fast=True, max_length=MAX_STOP_TOKENS)]
