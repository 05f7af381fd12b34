"""Flags, variables, commands and routes of SGLang, and what stands for each."""

from __future__ import annotations

from server.other_servers.row import ABSENT, NOT_NEEDED, SAME, Row

ROWS = (
    Row("`sglang serve --model-path MODEL`, `--model`", "`greenroom serve MODEL`"),
    Row("`--tokenizer-path`", NOT_NEEDED, "it is the one of the model's folder"),
    Row("`--host`, `--port`", SAME, "the default port is 8000 instead of 30000"),
    Row("`--max-running-requests`, `--max-queued-requests`", SAME),
    Row("`--context-length`", "`--max-model-len`"),
    Row("`--mem-fraction-static 0.9`", "`--memory 90%`; on CUDA `--device-memory 90%`"),
    Row("`--chunked-prefill-size`, `--max-prefill-tokens`", "`--max-batched-tokens`"),
    Row("`--max-total-tokens`, `--page-size`", "`--kv-cache-memory`", "in bytes"),
    Row("`--cpu-offload-gb`", "`--host-expert-memory`, `--device-expert-memory`"),
    Row("`--enable-deterministic-inference`", "`--deterministic`", "always on where it costs nothing"),
    Row("`--lora-paths NAME=PATH`", "`--adapter NAME=PATH`", "one a flag, repeatable"),
    Row("`--max-loras-per-batch`, `--max-lora-rank`", "`--adapter-memory`", "in bytes"),
    Row("`--enable-lora`", "`--adapters-dir DIR`"),
    Row("`--log-requests`", "`--log-prompts`", "each request has a line in the log anyway"),
    Row("`--enable-trace`, `--oltp-traces-endpoint`", "`--otlp-endpoint`"),
    Row("`--enable-metrics`, `--enable-cache-report`", NOT_NEEDED, "always on"),
    Row("`--quantization`, `--load-format`, `--modelopt-quant`", NOT_NEEDED, "read from the checkpoint"),
    Row("`--schedule-policy`, `--enable-priority-scheduling`", NOT_NEEDED, "`priority` of a request always counts"),
    Row(
        "`--tool-call-parser`, `--reasoning-parser`, `--grammar-backend`",
        NOT_NEEDED,
        "formats are detected from the chat template",
    ),
    Row("`--sampling-defaults openai`", "`--generation-config vllm`", "neutral defaults instead of the model's"),
    Row("`--chat-template`", SAME, "a file or the template itself, not a name"),
    Row(
        "`--attention-backend`, `--moe-runner-backend`, `--disable-cuda-graph`, `--enable-torch-compile`",
        NOT_NEEDED,
        "there is nothing to compile or choose",
    ),
    Row("`--random-seed`", NOT_NEEDED, "`seed` is a field of requests"),
    Row("`--disable-radix-cache`", ABSENT, "prefixes are always cached; `--prefix-cache-isolation` separates keys"),
    Row("`--trust-remote-code`", ABSENT, "code of a checkpoint never runs"),
    Row(
        "`--tp`, `--tp-size`, `--dp`, `--dp-size`, `--ep`, `--ep-size`, `--nnodes`, `--dist-init-addr`",
        ABSENT,
        "one process on one machine, with at most one GPU",
    ),
    Row("`--speculative-algorithm`, `--kv-cache-dtype`, `--enable-hierarchical-cache`", ABSENT),
    Row("`/generate`, `/vertex_generate`", "`/v1/completions` or `/v1/chat/completions`"),
    Row("`/encode`", "`/v1/embeddings`"),
    Row("`/flush_cache`", "`POST /reset_prefix_cache`", "with an admin key"),
    Row("`/get_model_info`, `/model_info`, `/get_server_info`, `/server_info`", "`/v1/models` and `/version`"),
    Row("`/get_load`, `/v1/loads`", "`/metrics`"),
    Row("`/health_generate`", "`/ready`"),
    Row("`/abort_request`", NOT_NEEDED, "a request ends when its client closes the connection"),
    Row("`/load_lora_adapter`, `/unload_lora_adapter`", "`/v1/load_lora_adapter`, `/v1/unload_lora_adapter`"),
    Row(
        "`/update_weights_from_disk`, `/update_weights_from_tensor`, `/update_weights_from_distributed`",
        "`POST /v1/experts/load`",
        "experts alone, from a folder below `--experts-dir`",
    ),
    Row("`/pause_generation`, `/continue_generation`, `/open_session`, `/close_session`", ABSENT),
    Row(
        "`/release_memory_occupation`, `/resume_memory_occupation`, `/start_profile`, `/stop_profile`",
        ABSENT,
    ),
)
