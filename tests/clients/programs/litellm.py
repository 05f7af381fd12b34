"""litellm: four providers that reach one server; streams, a forced tool, embeddings."""

import os
import warnings

warnings.simplefilter("ignore")
import litellm  # noqa: E402

URL, MODEL = os.environ["GREENROOM_URL"], os.environ["MODEL"]
QUESTION = [{"role": "user", "content": "How do I make tea?"}]
BREW = {
    "type": "function",
    "function": {
        "name": "brew",
        "parameters": {"type": "object", "properties": {"is_hot": {"type": "boolean"}}, "required": ["is_hot"]},
    },
}
bases = {"hosted_vllm": f"{URL}/v1", "openai": f"{URL}/v1", "anthropic": URL, "ollama_chat": URL}
for provider, base in bases.items():
    asked = {
        "model": f"{provider}/{MODEL}",
        "api_base": base,
        "api_key": "none",
        "messages": QUESTION,
        "max_tokens": 30,
    }
    reply = litellm.completion(**asked)
    assert reply.choices[0].message.content, provider
    assert reply.usage.completion_tokens > 0, provider
    assert len(list(litellm.completion(**asked, stream=True))) > 2, provider
    if provider != "ollama_chat":  # Ollama's API has no tool_choice
        called = litellm.completion(**asked, tools=[BREW], tool_choice="required")
        assert called.choices[0].message.tool_calls[0].function.name == "brew", provider
found = litellm.embedding(model=f"hosted_vllm/{MODEL}", api_base=f"{URL}/v1", api_key="none", input=["tea"])
assert found.data[0]["embedding"]
