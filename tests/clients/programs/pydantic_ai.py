"""pydantic-ai: unions of outputs by tools and natively, over chat completions, responses and messages; streams.

Responses are continued by the id of the one before, for which the server needs ``--response-store``.
"""

import os
from typing import Annotated, Literal

from anthropic import AsyncAnthropic
from pydantic import BaseModel, Field
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel, OpenAIResponsesModelSettings
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider

URL, MODEL = os.environ["GREENROOM_URL"], os.environ["MODEL"]


class Tea(BaseModel):
    """A cup of tea."""

    drink: Literal["tea"]
    kind: Literal["green", "black"]


class Coffee(BaseModel):
    """A cup of coffee."""

    drink: Literal["coffee"]
    has_milk: bool


class Order(BaseModel):
    """An order of one drink."""

    item: Annotated[Tea | Coffee, Field(discriminator="drink")]


class Leaf(BaseModel):
    """A leaf of a tree."""

    kind: Literal["leaf"] = "leaf"
    number: int = Field(ge=0, le=9)


class Node(BaseModel):
    """A tree with a tree below."""

    kind: Literal["node"] = "node"
    below: Annotated["Leaf | Node", Field(discriminator="kind")]


class Garden(BaseModel):
    """A garden with one tree."""

    tree: Annotated[Leaf | Node, Field(discriminator="kind")]


openai = OpenAIProvider(base_url=f"{URL}/v1", api_key="none")
anthropic = AnthropicProvider(anthropic_client=AsyncAnthropic(base_url=URL, api_key="none"))
models = {
    "chat completions": OpenAIChatModel(MODEL, provider=openai),
    "responses": OpenAIResponsesModel(MODEL, provider=openai),
    "messages": AnthropicModel(MODEL, provider=anthropic),
}
for name, model in models.items():
    union = Agent(model, output_type=[Tea, Coffee]).run_sync("Order a drink.")
    assert isinstance(union.output, Tea | Coffee), name
    nested = Agent(model, output_type=Order).run_sync("Order a drink.")
    assert isinstance(nested.output.item, Tea | Coffee), name
    recursive = Agent(model, output_type=Garden).run_sync("Plant a tree.")
    assert isinstance(recursive.output.tree, Leaf | Node), name
    assert Agent(model).run_sync("How do I make tea?").output, name
for name in ("chat completions", "responses"):
    native = Agent(models[name], output_type=NativeOutput([Tea, Coffee])).run_sync("Order a drink.")
    assert isinstance(native.output, Tea | Coffee), name
stream = Agent(models["chat completions"]).run_stream_sync("How do I make tea?")
assert "".join(stream.stream_text(delta=True))
agent = Agent(models["responses"], model_settings=OpenAIResponsesModelSettings(openai_previous_response_id="auto"))
first = agent.run_sync("How do I make tea?")
second = agent.run_sync("And coffee?", message_history=first.all_messages())
assert second.output
assert second.usage.input_tokens > first.usage.input_tokens  # the first turn is in it, though only the id was sent
