"""instructor: a model by tools, JSON and JSON schema; a union, a stream of parts."""

import os
from typing import Literal

import instructor
from openai import OpenAI
from pydantic import BaseModel

URL, MODEL = os.environ["GREENROOM_URL"], os.environ["MODEL"]
ORDER = [{"role": "user", "content": "Order a drink."}]


class Tea(BaseModel):
    kind: Literal["green", "black"]


class Coffee(BaseModel):
    has_milk: bool


class Order(BaseModel):
    drink: Tea | Coffee


def client(mode: instructor.Mode) -> instructor.Instructor:
    return instructor.from_openai(OpenAI(base_url=f"{URL}/v1", api_key="none"), mode=mode)


for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA):
    tea = client(mode).chat.completions.create(model=MODEL, messages=ORDER, response_model=Tea, max_tokens=200)
    assert tea.kind in {"green", "black"}, mode
tools = client(instructor.Mode.TOOLS).chat.completions
order = tools.create(model=MODEL, messages=ORDER, response_model=Order, max_tokens=200)
assert isinstance(order.drink, Tea | Coffee)
*_, last = tools.create_partial(model=MODEL, messages=ORDER, response_model=Tea, max_tokens=200)
assert last.kind in {"green", "black"}
