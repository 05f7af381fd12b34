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
BYTE_LEVEL = "gpt2"  # the kind of tokenizers whose text is split by a regular expression


def make_tokenizer(file: GgufFile) -> PreTrainedTokenizerBase:
    """Make the tokenizer of a file, with its chat template.

    Raises:
        ModelError: the file has no tokenizer, or one of a kind that Greenroom does not know.
    """
    metadata = file.metadata
    if TOKENS not in metadata or MODEL not in metadata:
        raise ModelError(f"{file.path.name} has no tokenizer ({TOKENS}); give the model in safetensors")
    rows = file.tensors["token_embd.weight"].shape[0] if "token_embd.weight" in file.tensors else None
    if rows is not None and rows != len(metadata[TOKENS]):
        raise ModelError(
            f"the tokenizer of {file.path.name} has {len(metadata[TOKENS])} tokens, but its table of embeddings {rows};"
            " download the file again"
        )
    kind, pre = metadata[MODEL], str(metadata.get(PRE))
    if kind == BYTE_LEVEL and pre not in GGUF_PRE_TOKENIZER_SPLITS and pre not in SPLITS:
        raise ModelError(
            f"{file.path.name} splits text by the rules of {pre!r} ({PRE}), which Greenroom does not know; give the "
            "model in safetensors"
        )
    values = {
        name: _plain(metadata[f"tokenizer.{key}"]) for key, name in _known_keys() if f"tokenizer.{key}" in metadata
    }
    try:
        tokenizer, _ = convert_gguf_tokenizer(file.architecture, values)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise ModelError(
            f"the tokenizer of {file.path.name} can't be used: {error}; download the file again"
        ) from error
    if pre in SPLITS and kind == BYTE_LEVEL:
        tokenizer.pre_tokenizer = _splits(SPLITS[pre])
    found_tokens = {name: _token(file, f"tokenizer.ggml.{key}_token_id") for name, key in SPECIAL.items()}
    special = {name: token for name, token in found_tokens.items() if token is not None}
    if metadata.get("tokenizer.ggml.add_bos_token", kind == "llama") and kind != "gemma4" and "bos_token" in special:
        _begin_with(tokenizer, special["bos_token"])
    found = PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **special)
    found.chat_template = chat_template(metadata)
    return found


def chat_template(metadata: Mapping[str, Any]) -> str | dict[str, str] | None:
    """Return the chat template of a file; several by name, the unnamed one as ``default``."""
    default = metadata.get(TEMPLATE)
    texts = ((name, metadata.get(f"{TEMPLATE}.{name}")) for name in metadata.get(TEMPLATE_NAMES, ()))
    named = {name: template for name, template in texts if isinstance(template, str)}
    if not named or not isinstance(default, str):
        return default if isinstance(default, str) else named.get("default")
    return {"default": default, **named}


def end_token_ids(file: GgufFile) -> list[int]:
    """Return the tokens that end a turn: those that the file names, and those of usual names among special tokens."""
    tokens, kinds = file.metadata.get(TOKENS, []), file.metadata.get("tokenizer.ggml.token_type", ())
    named = (file.metadata.get(f"tokenizer.ggml.{key}_token_id") for key in END_IDS)
    ends = END_TOKENS - NOT_ENDS.get(file.metadata.get(PRE, ""), set())
    usual = {
        index for index, token in enumerate(tokens) if token in ends and index < len(kinds) and kinds[index] == CONTROL
    }
    return sorted({each for each in named if type(each) is int and each < len(tokens)} | usual)


CONTROL = 3  # the type of special tokens


def _known_keys() -> list[tuple[str, str]]:
    return list(GGUF_TOKENIZER_MAPPING["tokenizer"].items())


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value


def _token(file: GgufFile, key: str) -> str | None:
    number, tokens = file.metadata.get(key), file.metadata[TOKENS]
    if number is None:
        return None
    if type(number) is not int or not 0 <= number < len(tokens):
        raise ModelError(f"{key} of {file.path.name} is {number!r}, not one of {len(tokens)} tokens; download it again")
    token: str = tokens[number]
    return token


def _splits(patterns: tuple[str, ...]) -> pre_tokenizers.PreTokenizer:
    splits = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in patterns]
    return pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _begin_with(tokenizer: Tokenizer, token: str) -> None:
    """Let the tokenizer add a token before each text."""
    template = TemplateProcessing(single=[token, "$A"], special_tokens=[(token, tokenizer.token_to_id(token))])
    processors = [tokenizer.post_processor] if tokenizer.post_processor is not None else []
    tokenizer.post_processor = ProcessorSequence([*processors, template])
