"""Checks that a model can run many sequences in one step: by the names of its layers, and by trial."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from server.model.architecture import text_modules
from server.model.attention.key_choice import INDEXED, can_be_hooked, indexers_of
from server.model.errors import NotBatchableError

BATCHABLE_LAYER_TYPES = {
    "full_attention",
    "sliding_attention",
    "chunked_attention",
    "attention",
    "moe",
    "mlp",
    "linear_attention",
    "mamba",
    "conv",
    "hybrid",
    "hybrid_sliding",
}
INDEXED_LAYER_TYPES = {"indexed_attention", "minimax_m3_sparse"}
COMPRESSED = "compressed-attention layers"
RELATIVE = "attention with relative position biases"
MAY_BE_NATIVE = (COMPRESSED, INDEXED, RELATIVE)  # which shows once a model has weights
SPECIAL_LAYER_TYPES = {  # the other types of transformers (``configuration_utils.ALLOWED_LAYER_TYPES``)
    **dict.fromkeys(INDEXED_LAYER_TYPES, INDEXED),
    "reference_sliding_attention": "layers that attend to the whole prompt and to a window of what follows it",
    "compressed_sparse_attention": COMPRESSED,
    "heavily_compressed_attention": COMPRESSED,
}
SPECIAL_MODULES = {  # descriptions of such layers, by the name of a module in them
    "indexer": INDEXED,
    "rel_logits_proj": RELATIVE,
    "relative_position_bias": RELATIVE,
}
INVARIANT = "its results do not depend on other sequences if each runs by itself"
ENCODER_REASON = "an encoder that reads the whole prompt before a decoder answers it"
REPEATS = 5  # times the tokens are repeated for a larger batch
ROUNDING = 1e-3  # tolerance relative to the range of an output


def check_batchable(model: PreTrainedModel, *, is_deterministic: bool = False, has_kernels: bool = True) -> None:
    """Check a model by its names, before it has weights.

    Args:
        is_deterministic: whether each sequence must have the same results in any company.
        has_kernels: whether there are native ones, which may run layers that modules run sequence by sequence.

    Raises:
        NotBatchableError: some layers are of a type that can't run many sequences in one step, or not with the same
            results in any company where ``is_deterministic`` asks for it.
    """
    if model.config.is_encoder_decoder:
        raise NotBatchableError(f"{type(model).__name__} has {ENCODER_REASON}")
    unknown = next(
        (kind for kind in _layer_types(model) if kind not in {*BATCHABLE_LAYER_TYPES, *SPECIAL_LAYER_TYPES}), 0
    )
    if unknown:
        raise NotBatchableError(f"{type(model).__name__} has {unknown} layers")
    special = find_special_layers(model) if is_deterministic else None
    if special not in (None, *(MAY_BE_NATIVE if has_kernels else ())):
        raise NotBatchableError(f"{type(model).__name__} has {special}, and {INVARIANT}")


def check_indexers(model: PreTrainedModel, reason: str | None) -> None:
    """Check a model that must have the same results in any company, and does not run natively.

    Args:
        reason: why it does not; None if that is not known.

    Raises:
        NotBatchableError: it has indexers, or attention that runs sequence by sequence.
    """
    if indexers_of(model):
        raise NotBatchableError(f"{type(model).__name__} has {INDEXED}, and {reason or 'modules'}")
    special = find_special_layers(model)
    if special is not None:
        raise NotBatchableError(f"{type(model).__name__} has {special}, and {INVARIANT}")


def find_special_layers(model: PreTrainedModel) -> str | None:
    """Return which layers of a model need their attention run sequence by sequence, by their names; None if none do."""
    are_known = all(map(can_be_hooked, indexers_of(model)))
    kinds = [SPECIAL_LAYER_TYPES.get(kind) for kind in _layer_types(model)]
    kinds += [SPECIAL_MODULES.get(name.rpartition(".")[2]) for name, _ in text_modules(model)]
    return next((kind for kind in kinds if kind is not None and not (kind == INDEXED and are_known)), None)


def _layer_types(model: PreTrainedModel) -> Sequence[str]:
    config = model.config.get_text_config()
    return getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None) or ()


def find_cross_token_module(model: nn.Module, tokens: Sequence[int], run: Callable[[Sequence[int]], Any]) -> str | None:
    """Return the first module in which a token depends on others, though no token attends to another.

    Two runs differ in all tokens but the last, and all outputs for the last must be equal. This finds recurrence,
    convolutions and attention that does not call the hooks, whatever their names.

    Args:
        run: runs the model on as many tokens as ``tokens``, with attention of each token to itself alone.

    Returns:
        The module's name; None if there is no such module.
    """
    others, last = list(tokens[:-1]), tokens[-1]
    outputs = [_outputs_of_last(model, [*before, last], run) for before in (others, others[::-1])]
    return next((name for name, row in outputs[0].items() if not _is_same(row, outputs[1][name])), None)


def varies_with_batch(tokens: Sequence[int], run: Callable[[Sequence[int], Sequence[int]], torch.Tensor]) -> bool:
    """Return whether any bit of a token's results changes with the number of tokens in the batch.

    Args:
        tokens: some tokens, in the order of their positions from 0.
        run: tokens and positions to a row of results for each token, with attention of each to itself alone.
    """
    positions = range(len(tokens))
    together = run(tokens, positions)
    repeated = run([*tokens] * REPEATS, [*positions] * REPEATS)
    alone = torch.cat([run([token], [position]) for token, position in zip(tokens, positions, strict=True)])
    return not (torch.equal(alone, together) and torch.equal(repeated, together.repeat(REPEATS, 1)))


def _outputs_of_last(
    model: nn.Module, tokens: Sequence[int], run: Callable[[Sequence[int]], Any]
) -> dict[str, torch.Tensor]:
    """Return the output for the last token of each module with an output for each token, in the order of running."""
    outputs: dict[str, torch.Tensor] = {}

    def watch(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if isinstance(output, torch.Tensor) and output.is_floating_point() and len(tokens) in output.shape:
                outputs[name] = output.select(output.shape.index(len(tokens)), -1).clone()

        return hook

    handles = [module.register_forward_hook(watch(name)) for name, module in model.named_modules()]
    try:
        run(tokens)
    finally:
        for handle in handles:
            handle.remove()
    return outputs


def _is_same(row: torch.Tensor, other: torch.Tensor) -> bool:
    return float((row - other).abs().max()) <= ROUNDING * float(row.max() - row.min())
