"""Tokenizers and chat templates, made from the metadata of GGUF files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenizers import Regex, Tokenizer, pre_tokenizers
from tokenizers.processors import Sequence as ProcessorSequence
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.integrations.gguf.gguf_tokenizer_mapping import (
    GGUF_PRE_TOKENIZER_SPLITS,
    GGUF_TOKENIZER_MAPPING,
    convert_gguf_tokenizer,
)

from server.model.checkpoint.gguf.gguf_file import GgufFile
from server.model.errors import ModelError

TOKENS, MODEL, PRE = "tokenizer.ggml.tokens", "tokenizer.ggml.model", "tokenizer.ggml.pre"
TEMPLATE, TEMPLATE_NAMES = "tokenizer.chat_template", "tokenizer.chat_templates"
SPECIAL = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
END_IDS = ("eos", "eot", "eom")  # tokens that end a turn
END_TOKENS = {  # tokens that end a turn in every vocabulary that has them (llama-vocab.cpp of llama.cpp)
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<end_of_turn>",
    "<turn|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "<|end▁of▁sentence|>",
    "<\uff5cend▁of▁sentence\uff5c>",
    "[EOT]",
    "[EOS]",
    "<|user|>",
    "<|observation|>",
}
NOT_ENDS = {  # for models whose template uses one of these within a turn, by the pre-tokenizer
    "gpt-4o": {"<|end|>"},
}
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
GLM4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
DEEPSEEK_V3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Each splits what the one before it left, as in the tokenizer.json of the models that are named.
SPLITS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("gpt-2", "olmo", "phi-2"), (GPT2,)),  # OLMoE, Phi-3.5-MoE
    **dict.fromkeys(("glm4", "chatglm-bpe"), (GLM4,)),  # zai-org/GLM-4.5, GLM-4.7-Flash
    "deepseek-v3": (
        r"\p{N}{1,3}",
        "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
        DEEPSEEK_V3,
    ),  # deepseek-ai/DeepSeek-V3
}
CONTROL = 3  # the type of special tokens
BYTE_LEVEL = "gpt2"  # the kind of tokenizers whose text is split by a regular expression


def make_tokenizer(file: GgufFile) -> PreTrainedTokenizerBase:
    """Make the tokenizer of a file, with its chat template.

    Raises:
        ModelError: the file has no tokenizer, or one of a kind that Greenroom does not know.
    """
    check_tokenizer(file)
    metadata, kind, pre = file.metadata, file.plain(MODEL, str), file.plain(PRE, str)
    values = {
        name: _plain(metadata[f"tokenizer.{key}"]) for key, name in _known_keys() if f"tokenizer.{key}" in metadata
    }
    try:
        tokenizer, _ = convert_gguf_tokenizer(file.architecture, values)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise ModelError(f"the tokenizer of {file.name} can't be used: {error}; download the file again") from error
    if kind == BYTE_LEVEL and pre is not None and pre in SPLITS:
        tokenizer.pre_tokenizer = _splits(SPLITS[pre])
    found_tokens = {name: _token(file, f"tokenizer.ggml.{key}_token_id") for name, key in SPECIAL.items()}
    special = {name: token for name, token in found_tokens.items() if token is not None}
    adds_begin = file.plain("tokenizer.ggml.add_bos_token", bool)
    if (kind == "llama" if adds_begin is None else adds_begin) and kind != "gemma4" and "bos_token" in special:
        _begin_with(tokenizer, special["bos_token"])
    found = PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **special)
    found.chat_template = chat_template(file)
    return found


def check_tokenizer(file: GgufFile) -> None:
    """Raise ModelError if a file has no tokenizer, or one that is not read or does not fit the table of embeddings."""
    tokens, kind = file.plain(TOKENS, list), file.plain(MODEL, str)
    if tokens is None or kind is None:
        raise ModelError(
            f"{file.name} has no tokenizer ({TOKENS}); name the model that it was made from with --config-from"
        )
    rows = num_embeddings(file)
    if rows is not None and rows != len(tokens):
        raise ModelError(
            f"the tokenizer of {file.name} has {len(tokens)} tokens, but its table of embeddings {rows};"
            " download the file again"
        )
    pre = file.plain(PRE, str)
    if kind == BYTE_LEVEL and pre not in GGUF_PRE_TOKENIZER_SPLITS and pre not in SPLITS:
        raise ModelError(
            f"{file.name} splits text by the rules of {pre!r} ({PRE}), which Greenroom does not know; name the "
            "model that it was made from with --config-from"
        )


def num_embeddings(file: GgufFile) -> int | None:
    """Return the rows of the table of embeddings; None if there is no such table."""
    table = file.tensors.get("token_embd.weight")
    return None if table is None else table.shape[0]


def chat_template(file: GgufFile) -> str | dict[str, str] | None:
    """Return the chat template of a file; several by name, the unnamed one as ``default``."""
    default = file.plain(TEMPLATE, str)
    texts = ((name, file.plain(f"{TEMPLATE}.{name}", str)) for name in file.plain(TEMPLATE_NAMES, list) or ())
    named = {name: template for name, template in texts if template is not None}
    if not named or default is None:
        return named.get("default") if default is None else default
    return {"default": default, **named}


def end_token_ids(file: GgufFile) -> list[int]:
    """Return the tokens that end a turn: those that the file names, and those of usual names among special tokens."""
    tokens, kinds = file.plain(TOKENS, list) or [], file.numbers("tokenizer.ggml.token_type")
    named = (file.plain(f"tokenizer.ggml.{key}_token_id", int) for key in END_IDS)
    ends = END_TOKENS - NOT_ENDS.get(file.plain(PRE, str) or "", set())
    usual = {
        index
        for index, (token, kind) in enumerate(zip(tokens, kinds, strict=False))
        if token in ends and kind == CONTROL
    }
    return sorted({each for each in named if each is not None and 0 <= each < len(tokens)} | usual)


def _known_keys() -> list[tuple[str, str]]:
    return list(GGUF_TOKENIZER_MAPPING["tokenizer"].items())


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value


def _token(file: GgufFile, key: str) -> str | None:
    number, tokens = file.plain(key, int), file.plain(TOKENS, list) or []
    if number is None:
        return None
    if not 0 <= number < len(tokens):
        raise ModelError(f"{key} of {file.name} is {number!r}, not one of {len(tokens)} tokens; download it again")
    return tokens[number]


def _splits(patterns: tuple[str, ...]) -> pre_tokenizers.PreTokenizer:
    splits = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in patterns]
    return pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _begin_with(tokenizer: Tokenizer, token: str) -> None:
    """Let the tokenizer add a token before each text."""
    template = TemplateProcessing(single=[token, "$A"], special_tokens=[(token, tokenizer.token_to_id(token))])
    processors = [tokenizer.post_processor] if tokenizer.post_processor is not None else []
    tokenizer.post_processor = ProcessorSequence([*processors, template])
