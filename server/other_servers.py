"""Flags and variables of other servers, and what stands for each in Greenroom.

The command line explains them from this table, and ``docs/migrating.md`` shows it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

SAME, NOT_NEEDED, ABSENT = "the same", "not needed", "absent"
VLLM, LLAMA_CPP, SGLANG, OLLAMA = "vLLM", "llama.cpp", "SGLang", "Ollama"
HEEDED = frozenset({"OLLAMA_HOST", "OLLAMA_MODELS"})  # variables that clients and the names of models use

_FLAG = re.compile(r"(?<![\w-])--?[A-Za-z][\w-]*")
_VARIABLE = re.compile(r"(?<![\w-])[A-Z]+_[A-Z_]+(?![\w*])")


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Args:
        theirs: flags, variables or commands of the other server, in Markdown.
        ours: what to use instead, in Markdown, or one of ``SAME``, ``NOT_NEEDED`` and ``ABSENT``.
        remark: why, or what else differs.
    """

    theirs: str
    ours: str
    remark: str = ""

    @property
    def names(self) -> list[str]:
        """The flags and variables of the other server."""
        code = " ".join(re.findall(r"`([^`]+)`", self.theirs))
        return _FLAG.findall(code) + _VARIABLE.findall(code)

    def explain(self, name: str, server: str) -> str:
        """Say in one sentence what stands for a flag or variable of the other server."""
        kind = "flag" if name.startswith("-") else "variable"
        ours = f"here it is {self.ours}" if self.ours not in (NOT_NEEDED, ABSENT) else f"it is {self.ours} here"
        return _plain(f"{name} is a {kind} of {server}; {ours}{': ' if self.remark else ''}{self.remark}")


def _plain(markdown: str) -> str:
    return re.sub(r"\[([^\]]+)\]\([^)]+\)", r"\1", markdown).replace("`", "")


TABLES: dict[str, tuple[Row, ...]] = {
    VLLM: (
        Row("`vllm serve MODEL`, `--model MODEL`", "`greenroom serve MODEL`"),
        Row("`--host`, `--port`, `--revision`, `--dtype`", SAME, "the default host is 127.0.0.1"),
        Row("`--served-model-name A B`", "`--served-model-name A --model-alias B=A`"),
        Row("`--max-model-len`", SAME, "tokens of prompt and completion of one request"),
        Row("`--max-num-seqs`", "`--max-running-requests`", "64 by default"),
        Row("`--max-num-batched-tokens`", "`--max-batched-tokens`", "512 by default; more on a GPU that pages experts"),
        Row(
            "`--gpu-memory-utilization 0.9`",
            "`--memory 90%`; on CUDA `--device-memory 90%`",
            "a size works too, such as 12GiB",
        ),
        Row("`--kv-cache-memory-bytes`", "`--kv-cache-memory`", "`auto` shares memory with the experts"),
        Row(
            "`--cpu-offload-gb`", "`--host-expert-memory`, `--device-expert-memory`", "experts move at run time, by use"
        ),
        Row("`--swap-space`", NOT_NEEDED, "preempted requests are computed again, mostly from the prefix cache"),
        Row("`--num-gpu-blocks-override`, `--block-size`", "`--kv-cache-memory`", "a block has a fixed size"),
        Row("`--api-key`", "`--api-key`, `--api-key-file`", "experts have their own `--admin-api-key`"),
        Row("`--allowed-origins`", "`--allow-origin`", "one origin a flag, repeatable"),
        Row("`--otlp-traces-endpoint`", "`--otlp-endpoint`", "OTLP over HTTP"),
        Row("`--enable-log-requests`", "`--log-prompts`", "each request has a line in the log anyway"),
        Row("`--disable-log-requests`, `--disable-log-stats`, `--uvicorn-log-level`", "`--log-level`"),
        Row("`--config FILE.yaml`", "`--config FILE.toml`"),
        Row("`--download-dir`", "`HF_HOME`", "a variable of the environment"),
        Row("`--hf-token`", "`HF_TOKEN`", "a variable of the environment"),
        Row("`VLLM_BATCH_INVARIANT=1`", "`--deterministic`", "always on where it costs nothing"),
        Row(
            "`--enable-prefix-caching`, `--enable-chunked-prefill`",
            NOT_NEEDED,
            "both are on for [all models that share steps](models.md#one-sequence-after-the-other-2)",
        ),
        Row("`--scheduling-policy priority`", NOT_NEEDED, "`priority` of a request always counts"),
        Row(
            "`--enable-auto-tool-choice`, `--tool-call-parser`, `--reasoning-parser`, `--enable-reasoning`",
            NOT_NEEDED,
            "the formats are detected from the chat template",
        ),
        Row(
            "`--quantization`, `-q`",
            NOT_NEEDED,
            "the format is read from the checkpoint; `greenroom pack --weights int8` quantises",
        ),
        Row("`--load-format`, `--config-format`, `--tokenizer-mode`", NOT_NEEDED, "the files are recognised"),
        Row("`--tokenizer`, `--hf-config-path`", "`--config-from`", "for GGUF files; others have them in their folder"),
        Row("`--chat-template`, `--generation-config`, `--override-generation-config`", SAME),
        Row("`--default-chat-template-kwargs`", "`--chat-template-kwargs`"),
        Row("`--chat-template-content-format`", NOT_NEEDED, "the form is detected from the template"),
        Row(
            "`--structured-outputs-config`, `--guided-decoding-backend`",
            NOT_NEEDED,
            "grammars are always enforced, by llguidance",
        ),
        Row(
            "`--enforce-eager`, `--compilation-config`, `--cuda-graph-sizes`, `--attention-backend`, "
            "`--async-scheduling`",
            NOT_NEEDED,
            "there is nothing to compile or choose",
        ),
        Row("`--limit-mm-per-prompt`, `--mm-processor-kwargs`", NOT_NEEDED, "images have fixed limits, in api.md"),
        Row("`--max-logprobs`, `--max-seq-len-to-capture`", NOT_NEEDED, "the limit is fixed"),
        Row("`--seed`", NOT_NEEDED, "`seed` is a field of requests"),
        Row("`--runner`, `--task`, `--convert`", NOT_NEEDED, "a model does what it can; `--model-type` checks it"),
        Row("`--trust-request-chat-template`", ABSENT, "requests bring no templates"),
        Row("`--trust-remote-code`", ABSENT, "code of a checkpoint never runs"),
        Row(
            "`--tensor-parallel-size`, `-tp`, `--pipeline-parallel-size`, `-pp`, `--data-parallel-size`, `-dp`, "
            "`--enable-expert-parallel`, `--distributed-executor-backend`",
            ABSENT,
            "one process on one machine, with at most one GPU",
        ),
        Row(
            "`--enable-lora`, `VLLM_ALLOW_RUNTIME_LORA_UPDATING`",
            "`--adapters-dir DIR`",
            "adapters are loaded from below `DIR` only ([api.md](api.md#adapters))",
        ),
        Row("`--lora-modules NAME=PATH`", "`--adapter NAME=PATH`", "one a flag, repeatable"),
        Row(
            "`VLLM_PLUGINS=lora_filesystem_resolver`, `VLLM_LORA_RESOLVER_CACHE_DIR`",
            "`--adapters-dir DIR --load-adapters on-request`",
            "",
        ),
        Row(
            "`--max-loras`, `--max-cpu-loras`, `--max-lora-rank`",
            "`--adapter-memory`",
            "in bytes; ranks and number have no other limit",
        ),
        Row("`--speculative-config`, `--speculative-model`", ABSENT, "there is no speculative decoding"),
        Row("`--kv-cache-dtype`", ABSENT, "the KV cache is not quantised"),
        Row("`--ssl-keyfile`, `--ssl-certfile`, `--root-path`", ABSENT, "use [a proxy](security.md#behind-a-proxy)"),
        Row("`--hf-overrides`, `--rope-scaling`", ABSENT, "change `config.json` in a copy of the model's folder"),
        Row("`--enable-sleep-mode`", ABSENT),
    ),
    LLAMA_CPP: (
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
            "`--cache-reuse`, `--cache-ram`, `--cache-prompt`, `-fa`, `--flash-attn`, `--swa-full`, `-kvu`, "
            "`--kv-unified`",
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
    ),
    SGLANG: (
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
    ),
    OLLAMA: (
        Row(
            "`ollama serve`, `ollama run MODEL`",
            "`greenroom serve ollama:MODEL`, then `greenroom chat`",
            "[where the files lie](#files-of-ollama-and-lm-studio)",
        ),
        Row("`ollama pull MODEL`", NOT_NEEDED, "`serve` downloads; in advance: `hf download MODEL`"),
        Row("`ollama list`, `ollama ps`", "`/api/tags`, `/api/ps`", "with Greenroom's address in `OLLAMA_HOST`"),
        Row("`ollama create`, Modelfile", ABSENT, "`greenroom pack` quantises"),
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
    ),
}


def explain(name: str) -> str | None:
    """Say in one sentence what stands for a flag or variable of other servers; None if none of them has it.

    A flag may have underscores, a value after ``=``, and a ``no-`` before its name.
    """
    flag = name.partition("=")[0]
    if flag.startswith("--"):
        flag = flag.replace("_", "-")
    for spelling in (flag, flag.replace("--no-", "--", 1)):
        rows = {server: row for server, table in TABLES.items() for row in table if _is_in(spelling, row)}
        if rows:
            return next(iter(rows.values())).explain(flag, " and ".join(rows))
    return None


def _is_in(name: str, row: Row) -> bool:
    return row.ours != SAME and name in row.names


def explain_variables(environment: Iterable[str]) -> list[str]:
    """Say for each variable of other servers that is set what stands for it, since it has no effect."""
    names = sorted(name for name in environment if "_" in name and name not in HEEDED)
    return [told for name in names if name.isupper() and (told := explain(name)) is not None]
