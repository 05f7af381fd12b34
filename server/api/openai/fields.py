"""Types of fields that only OpenAI's bodies have.

The ValueError of a validator says what the value must be; ``server.api.core.errors.validation`` puts the field's name
before it.
"""

from typing import Annotated

from pydantic import AfterValidator, Field, PlainValidator

from server.api.core.bodies.fields import MAX_INT32, Text, is_encodable
from server.api.core.errors.validation import quote

MAX_INT64 = 2**63 - 1
UNLIMITED = -1  # as many tokens as fit the model, as llama.cpp and Ollama write it
MAX_STOP_TOKENS = 1024
MAX_BIASES = 1024
MAX_BIAS = 100
MAX_LOGPROBS = 20
MAX_ALLOWED_TOKENS = 1 << 18  # more than any vocabulary has
MAX_BAD_WORDS = 1024
MAX_SALT_CHARACTERS = 1024

Prompt = str | list[int]


def is_token_ids(value: object) -> bool:
    return isinstance(value, list) and all(type(token) is int and 0 <= token <= MAX_INT32 for token in value)


def list_of_prompts(value: object) -> list[Prompt]:
    """Turn the four forms of a prompt into one: a list of texts, or of lists of token ids."""
    prompts = [value] if isinstance(value, str) or (value and is_token_ids(value)) else value
    if not isinstance(prompts, list) or not prompts:
        raise ValueError("must be a string, a list of token ids, or a list of several of either, and not be empty")
    are_texts = all(isinstance(prompt, str) and is_encodable(prompt) for prompt in prompts)
    if not are_texts and not all(map(is_token_ids, prompts)):
        raise ValueError("must hold valid Unicode strings only, or token ids from 0 only, or lists of token ids only")
    return prompts


def biases_by_token(value: object) -> dict[int, float]:
    """Turn the keys, which are strings in JSON, into token ids."""
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


def not_zero(number: int) -> int:
    if number == 0:
        raise ValueError("must be above 0, or -1 for as many tokens as fit the model")
    return number


Prompts = Annotated[
    list[Prompt],
    PlainValidator(list_of_prompts, json_schema_input_type=str | list[str] | list[int] | list[list[int]]),
]
LogitBias = Annotated[dict[int, float], PlainValidator(biases_by_token, json_schema_input_type=dict[str, float])]
TokenIds = Annotated[list[Annotated[int, Field(ge=0, le=MAX_INT32)]], Field(fail_fast=True, max_length=MAX_STOP_TOKENS)]
AllowedTokenIds = Annotated[
    list[Annotated[int, Field(ge=0, le=MAX_INT32)]],
    Field(fail_fast=True, min_length=1, max_length=MAX_ALLOWED_TOKENS),
]
TokenLimit = Annotated[int, Field(ge=UNLIMITED, le=MAX_INT32), AfterValidator(not_zero)]
BadWords = Annotated[list[Annotated[Text, Field(min_length=1, max_length=1024)]], Field(max_length=MAX_BAD_WORDS)]
CacheSalt = Annotated[Text, Field(min_length=1, max_length=MAX_SALT_CHARACTERS)]
