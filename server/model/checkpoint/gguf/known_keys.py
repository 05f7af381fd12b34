"""The keys of GGUF headers that llama.cpp's reader takes for the architectures that Greenroom serves.

Each is read, changes no text, or is refused unless it has the value that the architecture is computed with. Others are
named in the log, for they are not read.

Source: ``load_hparams``, ``load_arch_hparams`` and ``llama_vocab`` of https://github.com/ggml-org/llama.cpp.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from server.model.checkpoint.gguf.gguf_file import GgufFile
from server.model.errors import ModelError

READ = "read"  # by the config of the architecture
HARMLESS = "harmless"  # changes no text, or says what the tensors do


@dataclass(frozen=True)
class Only:
    """A key that is refused unless its value is the one that the architecture is computed with.

    Args:
        wanted: a phrase for that value.
        holds: takes the file and the value.
    """

    wanted: str
    holds: Callable[[GgufFile, Any], bool]


Use: TypeAlias = "str | Only"


def read(*keys: str) -> dict[str, Use]:
    """Return keys that the config of an architecture is made of."""
    return dict.fromkeys(keys, READ)


def one_of(*values: Any) -> Only:
    """Return a key that has one of a few values."""
    return Only(" or ".join(map(str, values)), lambda _, value: value in values)


def _head(file: GgufFile) -> int:
    heads = max(file.integer("attention.head_count"), 1)
    return file.integer("attention.key_length", file.integer("embedding_length") // heads)


def pattern(period: int) -> Only:
    """All layers have a window but the last of each period."""

    def holds(file: GgufFile, value: Any) -> bool:
        layers = range(file.integer("block_count"))
        return value in (period, [(layer + 1) % period != 0 for layer in layers])

    return Only(f"{period}, all layers but the last of {period}", holds)


SAME_BASE = Only(
    "rope.freq_base",
    lambda file, _: file.number("rope.freq_base_swa") == file.number("rope.freq_base", 10000.0),
)
WHOLE_HEAD = Only("the length of a head", lambda file, value: value == _head(file))
ONE_COUNT = Only("the same in all layers", lambda _, value: not isinstance(value, list) or len(set(value)) <= 1)

COMMON: Mapping[str, Use] = {
    **dict.fromkeys(
        (
            *("context_length", "embedding_length", "block_count", "nextn_predict_layers", "feed_forward_length"),
            *("expert_count", "expert_feed_forward_length", "attention.head_count", "attention.head_count_kv"),
            *("attention.key_length", "attention.layer_norm_epsilon", "attention.layer_norm_rms_epsilon"),
            *("rope.freq_base", "rope.scaling.type", "rope.scaling.factor", "rope.scale_linear"),
            *("rope.scaling.original_context_length", "rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow"),
        ),
        READ,
    ),
    **dict.fromkeys(
        (
            *("vocab_size", "attention.value_length", "expert_shared_count", "expert_shared_feed_forward_length"),
            *("pooling_type", "classifier.output_labels", "classifier.pooling_type", "tensor_data_layout"),
            *("expert_gating_func", "expert_weights_norm", "expert_weights_scale", "leading_dense_block_count"),
            # read by llama.cpp for other architectures
            *("rope.scaling.alpha", "rope.scaling.yarn_attn_factor", "rope.scaling.yarn_ext_factor"),
            *("rope.scaling.finetuned", "rope.scaling.yarn_log_multiplier", "attention.sliding_window"),
        ),
        HARMLESS,
    ),
    "expert_used_count": ONE_COUNT,
    "embedding_length_out": Only("the embedding length", lambda file, value: value == file.integer("embedding_length")),
    "attention.causal": one_of(True),
    "attention.key_length_swa": WHOLE_HEAD,
    "attention.value_length_swa": HARMLESS,
    "expert_group_count": one_of(0, 1),
    "expert_group_used_count": one_of(0, 1),
    "rope.dimension_count": WHOLE_HEAD,
    "rope.dimension_count_swa": WHOLE_HEAD,
    "rope.scaling.attn_factor": one_of(1.0),
}
GROUPS = read("expert_group_count", "expert_group_used_count")
ROTATED_IN_PART = read("rope.dimension_count", "rope.dimension_count_swa")
STATES = read("ssm.conv_kernel", "ssm.inner_size", "ssm.state_size", "ssm.group_count", "ssm.time_step_rank")
DELTA_NET = {**ROTATED_IN_PART, **STATES, **read("full_attention_interval", "attention.recurrent_layers")}
POSITIONS_OF_AXES: Mapping[str, Use] = {"rope.dimension_sections": HARMLESS}  # the same in text
TOKENIZER = frozenset(
    {
        *("ggml.model", "ggml.pre", "ggml.tokens", "ggml.token_type", "ggml.token_type_count", "ggml.scores"),
        *("ggml.merges", "ggml.add_bos_token", "ggml.add_eos_token", "ggml.add_sep_token", "ggml.add_space_prefix"),
        *("ggml.remove_extra_whitespaces", "ggml.precompiled_charsmap", "chat_template", "chat_templates"),
        *("huggingface.json", "rwkv.world"),
    }
)
TOKENIZER_PREFIXES = ("chat_template.",)  # templates by their names
TOKEN_IDS = "_token_id", "_token_ids"


def check_keys(file: GgufFile, own: Mapping[str, Use]) -> list[str]:
    """Check the keys of a header that have values other than the architecture is computed with.

    Args:
        own: keys of the architecture.

    Returns:
        The keys that are not known.

    Raises:
        ModelError: a key has a value that changes what the architecture computes.
    """
    known = {**COMMON, **own}
    unknown = [key for key in file.metadata if key.startswith("tokenizer.") and not _is_of_tokenizer(key)]
    for key in file.own_metadata():
        use, value = known.get(key), file.value(key)
        if use is None:
            unknown.append(f"{file.architecture}.{key}")
        elif isinstance(use, Only) and not use.holds(file, value):
            raise ModelError(
                f"{file.architecture}.{key} of {file.name} is {value}, but Greenroom computes this architecture with "
                f"{use.wanted}; name the model that the file was made from with --config-from"
            )
    return unknown


def _is_of_tokenizer(key: str) -> bool:
    name = key.removeprefix("tokenizer.")
    return name in TOKENIZER or name.startswith(TOKENIZER_PREFIXES) or name.endswith(TOKEN_IDS)
