"""LangChain: answers, streams, structured output, a forced tool, embeddings."""

import os
from typing import Literal

from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel

ADDRESS, MODEL = f"{os.environ['GREENROOM_URL']}/v1", os.environ["MODEL"]


class Tea(BaseModel):
    """A cup of tea."""

    kind: Literal["green", "black"]
    is_hot: bool


@tool
def brew(kind: Literal["green", "black"]) -> str:
    """Brew a cup of tea."""
    return kind


llm = ChatOpenAI(base_url=ADDRESS, api_key="none", model=MODEL, max_tokens=200)
assert llm.invoke("How do I make tea?").content
assert len(list(llm.stream("How do I make tea?"))) > 2
assert isinstance(llm.with_structured_output(Tea).invoke("Make tea."), Tea)
assert isinstance(llm.with_structured_output(Tea, method="function_calling").invoke("Make tea."), Tea)
(call,) = llm.bind_tools([brew], tool_choice="brew").invoke("Make tea.").tool_calls
assert call["args"]["kind"] in {"green", "black"}
embeddings = OpenAIEmbeddings(base_url=ADDRESS, api_key="none", model=MODEL, check_embedding_ctx_length=False)
assert len(embeddings.embed_documents(["tea", "rice"])) == 2
