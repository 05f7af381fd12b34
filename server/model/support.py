"""What can't run many sequences in one step: told by name, or by what one token's output depends on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from .architecture import text_modules
from .errors import NotBatchableError

BATCHED = {
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
KINDS = {  # transformers' names of the others (``configuration_utils.ALLOWED_LAYER_TYPES``)
    "indexed_attention": "sparse-attention layers with an indexer",
    "minimax_m3_sparse": "sparse-attention layers with an indexer",
    "reference_sliding_attention": "layers that attend to the whole prompt and to a window of what follows it",
    "compressed_sparse_attention": "compressed-attention layers",
    "heavily_compressed_attention": "compressed-attention layers",
}
PARTS = {  # modules that tell of such layers
    "indexer": "sparse-attention layers with an indexer",
    "rel_logits_proj": "attention with relative position biases",
    "relative_position_bias": "attention with relative position biases",
}
ENCODER = "an encoder that reads the whole prompt before a decoder answers it"
CROWD = 5  # times some tokens are a company of another size
ROUNDING = 1e-3  # of the range of an output


def check_layers(model: PreTrainedModel) -> None:
    """Look at what a model's config and its modules are called; it needs no weights yet.

    Raises:
        NotBatchableError: some layers are of a kind that can't run many sequences in one step.
    """
    if model.config.is_encoder_decoder:
        raise NotBatchableError(f"{type(model).__name__} has {ENCODER}")
    config = model.config.get_text_config()
    for kind in getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None) or ():
        if kind not in BATCHED:
            raise NotBatchableError(f"{type(model).__name__} has {KINDS.get(kind, f'{kind} layers')}")
    for name, _ in text_modules(model):
        kind = PARTS.get(name.rpartition(".")[2])
        if kind is not None:
            raise NotBatchableError(f"{type(model).__name__} has {kind} ({name})")


def find_leak(model: nn.Module, tokens: Sequence[int], run: Callable[[Sequence[int]], Any]) -> str | None:
    """The first module in which a token depends on the tokens before it, though none attends to another.

    Two runs differ in all tokens but the last, and nothing of the last may differ. This tells recurrence, convolutions
    and attention that does not come to us from what is safe to run on many sequences at once, whatever it is called.

    Args:
        run: runs the model on as many tokens as there are here, with attention of each token to itself alone.

    Returns:
        The module's name; None if there is none.
    """
    company, last = list(tokens[:-1]), tokens[-1]
    outputs = [_outputs_of_last(model, [*others, last], run) for others in (company, company[::-1])]
    return next((name for name, row in outputs[0].items() if not _is_same(row, outputs[1][name])), None)


def depends_on_company(tokens: Sequence[int], run: Callable[[Sequence[int], Sequence[int]], torch.Tensor]) -> bool:
    """Whether one bit of what a token gives is another alone, or in a larger company.

    Args:
        tokens: some tokens, whose positions are their places here.
        run: tokens and positions to one row of results a token, with attention of each to itself alone.
    """
    places = range(len(tokens))
    together = run(tokens, places)
    crowd = run([*tokens] * CROWD, [*places] * CROWD)
    alone = torch.cat([run([token], [place]) for token, place in zip(tokens, places, strict=True)])
    return not (torch.equal(alone, together) and torch.equal(crowd, together.repeat(CROWD, 1)))


def _outputs_of_last(
    model: nn.Module, tokens: Sequence[int], run: Callable[[Sequence[int]], Any]
) -> dict[str, torch.Tensor]:
    """What each module that gives something for each token gives for the last, in the order of running."""
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
