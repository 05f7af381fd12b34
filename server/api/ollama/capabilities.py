"""Capabilities of a model, as Ollama names them."""

from server.api.core.requests.loaded_model import LoadedModel
from server.api.tool_parsers.chat_format import ChatFormat

THINKING = "thinking"


def capabilities(model: LoadedModel) -> list[str]:
    """Return the capabilities of a model; may block the first time."""
    traits = model.codec.chat_traits
    chat_format = ChatFormat.of(traits)
    thinks = chat_format.thinking is not None or chat_format.harmony is not None
    found = {
        "completion": not model.engine.is_encoder,
        "embedding": model.engine.is_encoder,  # what writes text embeds too, and Ollama does not say so either
        "vision": traits.takes_images or model.codec.reads_images,
        "tools": traits.takes_tools,
        THINKING: thinks,
    }
    return [name for name, is_there in found.items() if is_there]
