"""pydantic-ai: unions of outputs by tools and natively, over chat completions, responses and messages; streams."""

import os
from typing import Annotated, Literal

from anthropic import AsyncAnthropic
from pydantic import BaseModel, Field
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
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
    assert Agent(model).run_sync("How do I make tea?").output, name
for name in ("chat completions", "responses"):
    native = Agent(models[name], output_type=NativeOutput([Tea, Coffee])).run_sync("Order a drink.")
    assert isinstance(native.output, Tea | Coffee), name
stream = Agent(models["chat completions"]).run_stream_sync("How do I make tea?")
assert "".join(stream.stream_text(delta=True))
