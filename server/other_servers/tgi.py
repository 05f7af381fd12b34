"""Routes of Hugging Face's Text Generation Inference, and what stands for each."""

from __future__ import annotations

from server.other_servers.row import Row

ROWS = (
    Row("`/generate`, `/generate_stream`, `/invocations`", "`/v1/completions` or `/v1/chat/completions`"),
    Row("`/info`", "`/v1/models` and `/version`"),
    Row("`/chat_tokenize`", "`POST /tokenize`", "it takes `messages`"),
)
