"""The clients that are tried, and how each is installed and run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

QUESTION = "How do I make tea?"


@dataclass(frozen=True)
class Client:
    """A client in an environment of its own.

    Args:
        packages: what is installed, from PyPI or npm.
        command: the command line; ``{url}``, ``{model}``, ``{folder}`` (of the model) and ``{out}`` (an empty folder)
            are replaced. Empty: the program of its name in ``programs``, or of the name in ``program``.
        variables: of the environment, with the same replacements.
        files: files of the folder in which it runs, by name, with the same replacements.
        says: a regular expression for what it prints of its success, if its exit status may be 0 without.
        shares: the client whose environment it runs in; empty: its own.
        program: the name of its program in ``programs``, if not its own.
    """

    name: str
    index: Literal["pypi", "npm"]
    packages: tuple[str, ...]
    command: tuple[str, ...] = ()
    variables: tuple[tuple[str, str], ...] = ()
    files: tuple[tuple[str, str], ...] = ()
    says: str = ""
    shares: str = ""
    program: str = ""


OPENCODE = """{
  "model": "greenroom/{model}",
  "small_model": "greenroom/{model}",
  "autoupdate": false,
  "share": "disabled",
  "provider": {
    "greenroom": {
      "npm": "@ai-sdk/openai-compatible",
      "options": {"baseURL": "{url}/v1", "apiKey": "none"},
      "models": {"{model}": {"limit": {"context": 131072, "output": 1024}}}
    }
  }
}
"""
# Without this file aider fetches a list of models from GitHub.
AIDER_MODEL = """{"openai/{model}": {"max_input_tokens": 32768, "max_output_tokens": 4096, "litellm_provider": "openai",
  "mode": "chat"}}
"""
EVALUATIONS = ("lm_eval[api]", "transformers")
EVALUATION = (("HF_HUB_OFFLINE", "1"), ("HF_DATASETS_CACHE", "{out}"))
TASK = """task: tea
dataset_path: json
dataset_kwargs: {data_files: {test: tea.jsonl}}
test_split: test
doc_to_text: "{{question}}"
"""
CHOICE = """output_type: multiple_choice
doc_to_choice: [water, sand]
doc_to_target: 0
metric_list: [{metric: acc}]
"""
ANSWER = """output_type: generate_until
doc_to_target: water
generation_kwargs: {until: ["."], max_gen_toks: 20}
metric_list: [{metric: exact_match}]
"""
QUESTIONS = '{"question": "Tea is made of"}\n{"question": "Rice is boiled in"}\n'
CODEX_PROVIDER = 'model_providers.greenroom={name="Greenroom",base_url="{url}/v1"}'

CLIENTS = (
    Client("ai-sdk", "npm", ("ai@6", "@ai-sdk/openai-compatible@2", "zod")),
    # Version 7 needs Node 22, which the package "node" brings.
    Client(
        "ai-sdk-7", "npm", ("ai@7", "@ai-sdk/openai-compatible@3", "zod", "node@22"), says="Node v22", program="ai-sdk"
    ),
    Client("ollama-js", "npm", ("ollama",)),
    Client("langchain", "pypi", ("langchain-openai",)),
    Client("llama_index", "pypi", ("llama-index-llms-openai-like", "llama-index-embeddings-openai-like")),
    Client("pydantic_ai", "pypi", ("pydantic-ai-slim[openai,anthropic]",)),
    Client("instructor", "pypi", ("instructor",)),
    Client("litellm", "pypi", ("litellm",), variables=(("LITELLM_LOCAL_MODEL_COST_MAP", "True"),)),
    Client(
        "codex",
        "npm",
        ("@openai/codex",),
        (
            *("codex", "exec", "--skip-git-repo-check", "--sandbox", "read-only", "-m", "{model}"),
            *("-c", "model_provider=greenroom", "-c", CODEX_PROVIDER, "-c", "model_context_window=131072", QUESTION),
        ),
        (("CODEX_HOME", "{out}"),),
    ),
    Client(
        "claude-code",
        "npm",
        ("@anthropic-ai/claude-code",),
        ("claude", "-p", QUESTION, "--model", "claude-greenroom", "--max-turns", "1", "--tools", "Read"),
        (
            ("ANTHROPIC_BASE_URL", "{url}"),
            ("ANTHROPIC_AUTH_TOKEN", "none"),
            ("CLAUDE_CONFIG_DIR", "{out}"),
            ("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "1"),
            ("CLAUDE_CODE_ATTRIBUTION_HEADER", "0"),
        ),
    ),
    Client(
        "opencode",
        "npm",
        ("opencode-ai",),
        ("opencode", "run", "--agent", "plan", QUESTION),
        (("XDG_DATA_HOME", "{out}/data"), ("XDG_CONFIG_HOME", "{out}/config"), ("XDG_CACHE_HOME", "{out}/cache")),
        (("opencode.json", OPENCODE),),
    ),
    Client(
        "qwen-code",
        "npm",
        ("@qwen-code/qwen-code",),
        ("qwen", "--auth-type", "openai", "-p", QUESTION, "--max-session-turns", "2"),
        (
            ("OPENAI_BASE_URL", "{url}/v1"),
            ("OPENAI_API_KEY", "none"),
            ("OPENAI_MODEL", "{model}"),
            ("HOME", "{out}"),
        ),
    ),
    Client(
        "aider",
        "pypi",
        ("aider-chat",),
        (
            *("aider", "--model", "openai/{model}", "--no-git", "--yes-always"),
            *("--chat-mode", "ask", "--no-check-update", "--analytics-disable", "--message", QUESTION),
        ),
        (("OPENAI_API_BASE", "{url}/v1"), ("OPENAI_API_KEY", "none"), ("HOME", "{out}")),
        ((".aider.model.metadata.json", AIDER_MODEL),),
        says=r"(?s)\A(?!.*githubusercontent)(?!.*Unknown context window).*Tokens: \d+ sent, [1-9]\d* received",
    ),
    Client(
        "lm-eval",
        "pypi",
        EVALUATIONS,
        (
            *("lm_eval", "--model", "local-completions", "--tasks", "tea", "--include_path", "."),
            *("--model_args", "model={model},base_url={url}/v1/completions,tokenizer={folder},num_concurrent=2"),
        ),
        EVALUATION,
        (("tea.yaml", TASK + CHOICE), ("tea.jsonl", QUESTIONS)),
        says=r"\|tea .*\|acc ",
    ),
    Client(
        "lm-eval-chat",
        "pypi",
        EVALUATIONS,
        (
            *("lm_eval", "--model", "local-chat-completions", "--tasks", "tea", "--include_path", "."),
            *("--apply_chat_template", "--model_args"),
            "model={model},base_url={url}/v1/chat/completions,num_concurrent=2",
        ),
        EVALUATION,
        (("tea.yaml", TASK + ANSWER), ("tea.jsonl", QUESTIONS)),
        says=r"\|tea .*\|exact_match",
        shares="lm-eval",
    ),
    Client(
        "guidellm",
        "pypi",
        ("guidellm",),
        (
            *("guidellm", "run", "--backend", "kind=openai_http,target={url},model={model}"),
            *("--profile", "kind=concurrent,streams=2", "--constraint", "kind=max_requests,count=4"),
            *("--tokenizer", "kind=huggingface_auto,model={folder}"),
            *("--data", "kind=synthetic_text,prompt_tokens=32,output_tokens=8"),
        ),
        says=r"concurrent@2 .*\| 4 +\| 0 +\| 0 +\|",  # completed, incomplete and failed requests
    ),
    Client(
        "aiperf",
        "pypi",
        ("aiperf",),
        (
            *("aiperf", "profile", "--model", "{model}", "--url", "{url}", "--endpoint-type", "chat", "--streaming"),
            *("--tokenizer", "{folder}", "--concurrency", "2", "--request-count", "4", "--ui", "none"),
            *("--synthetic-input-tokens-mean", "32", "--output-tokens-mean", "8", "--extra-inputs", "ignore_eos:true"),
            *("--artifact-dir", "{out}"),
        ),
        says=r"Request Count \(requests\) │ +4\.00 ",
    ),
)
