"""LlamaIndex: answers, streams, structured output by a tool, embeddings."""

import os
from typing import Literal

from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel

ADDRESS, MODEL = f"{os.environ['GREENROOM_URL']}/v1", os.environ["MODEL"]


class Tea(BaseModel):
    """A cup of tea."""

    kind: Literal["green", "black"]


llm = OpenAILike(
    api_base=ADDRESS,
    api_key="none",
    model=MODEL,
    is_chat_model=True,
    is_function_calling_model=True,
    context_window=2048,
    max_tokens=30,
)
question = [ChatMessage(role="user", content="How do I make tea?")]
assert llm.chat(question).message.content
assert len(list(llm.stream_chat(question))) > 2
assert llm.complete("Tea is").text
assert isinstance(llm.structured_predict(Tea, PromptTemplate("Make tea.")), Tea)
embedding = OpenAILikeEmbedding(api_base=ADDRESS, api_key="none", model_name=MODEL)
assert len(embedding.get_text_embedding_batch(["tea", "rice"])) == 2
