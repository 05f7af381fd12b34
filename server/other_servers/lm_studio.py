"""Flags, variables, commands and routes of LM Studio, and what stands for each."""

from __future__ import annotations

from server.other_servers.row import ABSENT, Row

ROWS = (
    Row("`/api/v0/models`, `/api/v1/models`", "`/v1/models`"),
    Row("`/api/v0/chat/completions`, `/api/v1/chat`", "`/v1/chat/completions`"),
    Row("`/api/v0/completions`", "`/v1/completions`"),
    Row("`/api/v0/embeddings`", "`/v1/embeddings`"),
    Row(
        "`/api/v1/models/load`, `/api/v1/models/unload`, `/api/v1/models/download`",
        ABSENT,
        "a server has the model that it was started with",
    ),
    Row("others below `/api/v0` and `/api/v1`", "`/v1`", "OpenAI's routes"),
)
