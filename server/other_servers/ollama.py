"""Flags, variables, commands and routes of Ollama, and what stands for each."""

from __future__ import annotations

from server.other_servers.row import ABSENT, NOT_NEEDED, Row

ROWS = (
    Row(
        "`ollama serve`, `ollama run MODEL`",
        "`greenroom serve ollama:MODEL`, then `greenroom chat`",
        "MODEL is found [where Ollama has put it](#files-of-ollama-and-lm-studio)",
    ),
    Row("`ollama pull MODEL`", NOT_NEEDED, "`greenroom serve MODEL` downloads; in advance: `hf download MODEL`"),
    Row("`ollama ps`", "`greenroom top`", "or `/api/ps`, with Greenroom's address in `OLLAMA_HOST`"),
    Row("`ollama list`, `ollama ls`", "`/v1/models`, or `hf cache ls` for what was downloaded"),
    Row("`ollama show MODEL`", "`greenroom inspect MODEL`", "of a running server `/api/show`"),
    Row("`ollama rm MODEL`", "`hf cache rm model/OWNER/NAME`", "the files are in the hub's cache"),
    Row("`ollama stop MODEL`", ABSENT, "a server has one model: end it by Ctrl-C or SIGTERM"),
    Row("`ollama create`, Modelfile", ABSENT, "`greenroom pack` quantises"),
    Row("`ollama cp`, `ollama push`", ABSENT, "`--model-alias` gives a model another name"),
    Row("`/api/blobs`", ABSENT, "a server has the model that it was started with"),
    Row("`OLLAMA_HOST` (server)", "`--host`, `--port`", "the default port is 8000 instead of 11434"),
    Row(
        "`OLLAMA_CONTEXT_LENGTH`, `num_ctx`",
        "`--max-model-len`",
        "one for all requests; the default is the model's own",
    ),
    Row("`OLLAMA_NUM_PARALLEL`", "`--max-running-requests`"),
    Row("`OLLAMA_MAX_QUEUE`", "`--max-queued-requests`", "beyond it requests get 429"),
    Row("`OLLAMA_ORIGINS`", "`--allow-origin`"),
    Row(
        "`OLLAMA_MODELS`",
        "`OLLAMA_MODELS`",
        "where `ollama:NAME` is looked up; `HF_HOME` is the folder for downloads",
    ),
    Row("`OLLAMA_DEBUG=1`", "`--log-level debug`"),
    Row(
        "`num_thread`, `num_gpu`",
        "`--threads`; `--device`, `--device-expert-memory`",
        "flags, not options of a request",
    ),
    Row("`OLLAMA_GPU_OVERHEAD`", "`--device-memory`"),
    Row(
        "`OLLAMA_KEEP_ALIVE`, `OLLAMA_MAX_LOADED_MODELS`, `OLLAMA_LOAD_TIMEOUT`",
        NOT_NEEDED,
        "the model stays in memory; start a server for each model",
    ),
    Row("`OLLAMA_FLASH_ATTENTION`", NOT_NEEDED, "attention has no variants to choose from"),
    Row("`OLLAMA_NOPRUNE`, `OLLAMA_NOHISTORY`, `OLLAMA_LLM_LIBRARY`, `OLLAMA_SCHED_SPREAD`", NOT_NEEDED),
    Row("`OLLAMA_KV_CACHE_TYPE`", ABSENT, "the KV cache is not quantised"),
)
