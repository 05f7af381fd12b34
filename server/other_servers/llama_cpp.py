"""Flags, variables, commands and routes of llama.cpp, and what stands for each."""

from __future__ import annotations

from server.other_servers.row import ABSENT, NOT_NEEDED, SAME, Row

ROWS = (
    Row(
        "`-m FILE.gguf`, `--model`",
        "`greenroom serve FILE.gguf`",
        "[which models](models.md#gguf)",
    ),
    Row(
        "`-hf OWNER/MODEL-GGUF`, `-hfr`, `--hf-repo`, `-hff`, `--hf-file`, `-mu`, `--model-url`",
        "`greenroom serve OWNER/MODEL`",
        "or `OWNER/MODEL-GGUF:Q4_K_M`, with the tag of a GGUF file",
    ),
    Row("`-hft`, `--hf-token`", "`HF_TOKEN`", "a variable of the environment"),
    Row("`--host`, `--port`", SAME, "the default port is 8000 instead of 8080"),
    Row("`-a`, `--alias`", "`--served-model-name`, `--model-alias`"),
    Row("`-c`, `--ctx-size`", "`--max-model-len`", "for each request; it is not divided by slots"),
    Row("`-np`, `--parallel`", "`--max-running-requests`"),
    Row("`-b`, `--batch-size`, `-ub`, `--ubatch-size`", "`--max-batched-tokens`"),
    Row("`--threads`", SAME),
    Row("`-t`, `-tb`, `--threads-batch`, `--threads-http`", "`--threads`", "one number for all work"),
    Row(
        "`-ngl`, `--gpu-layers`, `--n-gpu-layers`, `-ncmoe`, `--n-cpu-moe`, `-cmoe`, `--cpu-moe`, `-ot`, "
        "`--override-tensor`",
        "`--device`, `--device-expert-memory`, `--host-expert-memory`",
        "the trunk is on the device, experts are paged",
    ),
    Row("`-dev`, `-mg`, `--main-gpu`", "`--device cuda:N`"),
    Row("`-sm`, `--split-mode`, `-ts`, `--tensor-split`, `--rpc`", ABSENT, "one process with at most one GPU"),
    Row(
        "`--mmap`, `--mlock`, `--direct-io`, `-lm`, `--load-mode`, `--no-repack`",
        "`--memory`",
        "experts are read into a fixed budget; nothing is memory-mapped",
    ),
    Row("`-fit`, `--fit`", NOT_NEEDED, "budgets fit the machine by default"),
    Row("`--api-key`, `--api-key-file`", SAME),
    Row("`-to`, `--timeout`", NOT_NEEDED, "`timeout` is a field of requests, in seconds"),
    Row(
        "`--jinja`, `--embeddings`, `--embedding`, `--reranking`, `--metrics`, `-cb`, `--cont-batching`",
        NOT_NEEDED,
        "always on",
    ),
    Row("`--slots`, `--props`", NOT_NEEDED, "[`GET /v1/requests`](api.md#requests) shows what runs"),
    Row("`--no-webui`", NOT_NEEDED, "the dashboard shows nothing without a key if keys are set"),
    Row(
        "`--reasoning-format`, `--reasoning-budget`",
        NOT_NEEDED,
        "reasoning is always in `reasoning_content`; requests switch it",
    ),
    Row(
        "`--cache-reuse`, `--cache-ram`, `--cache-prompt`, `-fa`, `--flash-attn`, `--swa-full`, `-kvu`, `--kv-unified`",
        NOT_NEEDED,
        "common beginnings are reused; attention has no variants to choose from",
    ),
    Row(
        "`--temp`, `--temperature`, `--top-k`, `--top-p`, `--min-p`, `--repeat-penalty`",
        "`--override-generation-config JSON`",
        "defaults of the fields of requests",
    ),
    Row(
        "`--presence-penalty`, `--frequency-penalty`, `--seed`, `-s`, `-n`, `--predict`, `--n-predict`",
        NOT_NEEDED,
        "they are fields of requests",
    ),
    Row("`--chat-template`, `--chat-template-kwargs`", SAME, "the template itself or a file, not a name"),
    Row("`--chat-template-file FILE`", "`--chat-template FILE`"),
    Row(
        "`--samplers`, `--mirostat`, `--typical`, `--dry-multiplier`, `--xtc-probability`, `--top-nsigma`",
        ABSENT,
        "[api.md](api.md) lists the samplers",
    ),
    Row("`--grammar`, `--grammar-file`, `-j`, `--json-schema`", NOT_NEEDED, "they are fields of requests"),
    Row("`-v`, `--verbose`, `-lv`, `--verbosity`", "`--log-level debug`"),
    Row("`--log-file`, `--log-disable`", NOT_NEEDED, "the log is standard error: redirect it"),
    Row("`--mmproj`, `-mm`", NOT_NEEDED, "a model's image encoder is in its checkpoint"),
    Row("`--lora`, `--lora-scaled`", "`--adapter NAME=PATH`", "a folder that PEFT has written, not GGUF"),
    Row("`-md`, `--model-draft`, `--draft-max`, `--draft`", ABSENT, "there is no speculative decoding"),
    Row("`-ctk`, `--cache-type-k`, `-ctv`, `--cache-type-v`", ABSENT, "the KV cache is not quantised"),
    Row("`--slot-save-path`, `--numa`, `--control-vector`", ABSENT),
    Row(
        "`--rope-scale`, `--rope-freq-base`, `--rope-freq-scale`, `--yarn-orig-ctx`, `--override-kv`",
        ABSENT,
        "change `config.json` in a copy of the model's folder",
    ),
    Row("`--ssl-key-file`, `--ssl-cert-file`, `--api-prefix`", ABSENT, "use [a proxy](security.md#behind-a-proxy)"),
    Row("`LLAMA_ARG_CTX_SIZE`", "`GREENROOM_MAX_MODEL_LEN`", "every flag is a variable `GREENROOM_<FLAG>`"),
    Row("`LLAMA_ARG_MODEL`, `LLAMA_ARG_HF_REPO`", "`greenroom serve MODEL`"),
    Row("`LLAMA_ARG_N_PARALLEL`", "`GREENROOM_MAX_RUNNING_REQUESTS`"),
    Row(
        "`LLAMA_ARG_N_GPU_LAYERS`, `LLAMA_ARG_N_CPU_MOE`, `LLAMA_ARG_CPU_MOE`",
        "`GREENROOM_DEVICE`, `GREENROOM_DEVICE_EXPERT_MEMORY`, `GREENROOM_HOST_EXPERT_MEMORY`",
    ),
    Row(
        "`llama-quantize`",
        "`greenroom pack MODEL OUT --weights int4`",
        "formats: bfloat16, int8, int4; of GGUF files also their own",
    ),
    Row("`llama-cli`", "`greenroom chat`", "talks to a running server"),
    Row("`/v1/health`", "`/health`"),
    Row("`/completion`, `/completions`", "`/v1/completions`"),
    Row("`/chat/completions`", "`/v1/chat/completions`"),
    Row("`/embedding`, `/embeddings`", "`/v1/embeddings`"),
    Row("`/reranking`, `/v1/reranking`", "`/rerank`"),
    Row("`/infill`", ABSENT, "this server inserts no text"),
    Row("`/props`", "`GET /v1/models`", "`POST /api/show` has the chat template"),
    Row("`/slots`", "`GET /v1/requests`", "with an admin key"),
    Row(
        "`/apply-template`", "`POST /tokenize`", "it takes `messages`, and `/detokenize` returns the text of its tokens"
    ),
    Row("`/lora-adapters`", "`GET /v1/adapters`", "the field `adapters` chooses those of a request"),
    Row(
        "`/models`, `/models/load`, `/models/unload`", "`/v1/models`", "a server has the model that it was started with"
    ),
)
