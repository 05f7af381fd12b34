"""NativeNgrams: embeddings of n-grams that a layer adds to its residual stream, as the native kernels run them."""

from __future__ import annotations

from collections.abc import Iterator
from ctypes import addressof
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import nn

from server.kernels.native.linear import plain_matrix
from server.kernels.native.structures.matrices import Matrix
from server.kernels.native.structures.mixers import Convolution, NgramEmbeddings
from server.model.blocks.errors import UnsupportedLayerError
from server.model.blocks.gated_streams import COUNT, RowNorm
from server.model.blocks.kept_tensors import KeptTensors
from server.model.blocks.linears import LINEARS, Linear, matrix_of
from server.model.quantised.embedding import QuantisedEmbedding
from server.model.recurrent.states import StateCache, StateKey, StateShape, StateShapes

HASHES, KEY, VALUE, CONVOLUTION = "ple_embedding", "key_proj", "value_proj", "conv1d"  # children
NORMS = ("norm_key", "norm_query", "norm_conv")
TABLE = "ngram_embedding"  # child of the first
BUFFERS = ("layer_multipliers", "ngram_heads_vocab_sizes", "ngram_heads_offsets")  # of the same
LONGEST, HEADS, END = "ngram_size", "heads_per_ngram", "eos_token_id"  # its attributes
INPUTS, TOKENS = 1, 2  # numbers of the states of convolutions with what the module keeps


@dataclass(frozen=True)
class NgramParts:
    """The parts of a module that embeds the last tokens of a text together."""

    module: Any
    hashes: Any  # its module that has the table
    key: Linear
    value: Linear
    norms: tuple[RowNorm, RowNorm, RowNorm]  # of keys, of rows of the stream, and of gated values
    num_streams: int

    @classmethod
    def find(cls, module: Any) -> Self | None:
        """Return the parts of a child of a layer; None if it is something else."""
        children, count = dict(module.named_children()), getattr(module, COUNT, None)
        if children.keys() != {HASHES, KEY, VALUE, CONVOLUTION, *NORMS} or not isinstance(count, int):
            return None
        hashes: Any = children[HASHES]
        has_counts = all(isinstance(getattr(hashes, name, None), int) for name in (LONGEST, HEADS, END))
        has_hashes = all(isinstance(getattr(hashes, name, None), torch.Tensor) for name in BUFFERS)
        key, value = children[KEY], children[VALUE]
        if not has_counts or not has_hashes or not hasattr(hashes, TABLE):
            return None
        if not isinstance(key, LINEARS) or not isinstance(value, LINEARS) or key.bias is not value.bias:
            return None
        norms = [norm for name in NORMS if (norm := RowNorm.find(children[name], count)) is not None]
        if len(norms) != len(NORMS) or len({norm.epsilon for norm in norms}) > 1:
            return None
        return cls(module, hashes, key, value, (norms[0], norms[1], norms[2]), count)

    def parameters(self) -> Iterator[nn.Parameter]:
        yield from self.module.parameters()


class NativeNgrams:
    """The embeddings of n-grams of one layer.

    Args:
        parts: of the family's module.

    Raises:
        UnsupportedLayerError: it computes something else.
    """

    def __init__(self, parts: NgramParts):
        self._layer, self.kept = int(parts.module.layer_idx), KeptTensors()
        hashes, norms, kept = parts.hashes, parts.norms, self.kept
        multipliers, sizes, offsets = (kept.hold(getattr(hashes, name).long().contiguous()) for name in BUFFERS)
        self.spec = NgramEmbeddings(
            table=_table_of(getattr(hashes, TABLE)),
            key=matrix_of(parts.key),
            value=matrix_of(parts.value),
            convolution=self._convolution(getattr(parts.module, CONVOLUTION)),
            key_norm=kept.keep(norms[0].weight),
            stream_norm=kept.keep(norms[1].weight),
            value_norm=kept.keep(norms[2].weight),
            multipliers=multipliers,
            sizes=sizes,
            offsets=offsets,
            num_streams=parts.num_streams,
            most=getattr(hashes, LONGEST),
            heads=(getattr(hashes, LONGEST) - 1) * getattr(hashes, HEADS),
            end=getattr(hashes, END),
            epsilon=norms[0].epsilon,
        )
        counts = [len(getattr(hashes, name)) for name in BUFFERS]
        if counts != [self.spec.most, self.spec.heads, self.spec.heads]:
            raise UnsupportedLayerError("the n-grams of its layers have other hashes")
        _check_hashes(parts, self.spec)

    @property
    def address(self) -> int:
        return addressof(self.spec)

    @property
    def states(self) -> StateShapes:
        """The states of one sequence."""
        return {
            self._key(INPUTS): StateShape(self._kept_inputs, torch.float32),
            self._key(TOKENS): StateShape((self.spec.most - 1,), torch.int32),
        }

    def bind(self, states: StateCache | None) -> None:
        """Keep states in this memory."""
        assert states is not None
        self.spec.convolution.states = states.tensor(self._key(INPUTS)).data_ptr()
        self.spec.states = states.tensor(self._key(TOKENS)).data_ptr()

    def for_trial(self) -> TrialNgrams:
        """Return a copy with memory of its own, for one sequence in a trial."""
        return TrialNgrams(self.spec, self._kept_inputs)

    @property
    def _kept_inputs(self) -> tuple[int, int]:
        spec = self.spec.convolution
        return (spec.width - 1) * spec.dilation, spec.channels

    def _key(self, number: int) -> StateKey:
        return StateKey(self._layer, "conv", number)

    def _convolution(self, module: nn.Conv1d) -> Convolution:
        channels, width = module.out_channels, module.kernel_size[0]
        is_plain = module.groups == channels == module.in_channels and module.stride == (1,) and module.padding == (0,)
        if not is_plain or module.bias is not None:
            raise UnsupportedLayerError("its convolution is not a causal one of each channel")
        weight = self.kept.keep(module.weight.squeeze(1).T)
        return Convolution(weight, None, None, width, channels, 1, module.dilation[0])


class TrialNgrams:
    """A copy of a layer's embeddings of n-grams with states of its own.

    Args:
        own: its structure.
        kept_inputs: the shape of the inputs that its convolution keeps.
    """

    def __init__(self, own: NgramEmbeddings, kept_inputs: tuple[int, int]):
        spec = self._spec = NgramEmbeddings.from_buffer_copy(own)
        self._inputs, self._tokens = torch.zeros(kept_inputs), torch.zeros(own.most - 1, dtype=torch.int32)
        spec.convolution.states, spec.states = self._inputs.data_ptr(), self._tokens.data_ptr()

    @property
    def address(self) -> int:
        return addressof(self._spec)


def hashed(tokens: list[int], spec: NgramEmbeddings, parts: NgramParts) -> torch.Tensor:
    """Return the rows of the table for the tokens of a text, int64 ``(tokens, heads)``, as the kernels find them."""
    multipliers, sizes, offsets = (getattr(parts.hashes, name).tolist() for name in BUFFERS)
    heads, rows = spec.heads // (spec.most - 1), []
    for place in range(len(tokens)):
        mixed, has_ended, row = 0, False, list[int]()
        for i in range(spec.most):
            token = spec.end if has_ended or i > place else tokens[place - i]
            has_ended |= i > 0 and token == spec.end
            mixed ^= token * multipliers[i]
            if i:
                row += [mixed % sizes[head] + offsets[head] for head in range((i - 1) * heads, i * heads)]
        rows.append(row)
    return torch.tensor(rows)


def _check_hashes(parts: NgramParts, spec: NgramEmbeddings) -> None:
    """Compare the rows of the table that a module looks up, in a text with ends in it, with those of the kernels."""
    end, looked_up = int(spec.end), list[torch.Tensor]()
    tokens = [3, 5, 8, end, 2, 7, end, end, 4, 9, 6]
    table = getattr(parts.hashes, TABLE)
    hook = table.register_forward_pre_hook(lambda _, args: looked_up.append(args[0][0]))
    try:
        with torch.inference_mode():
            parts.hashes(torch.tensor([tokens]), None)
    finally:
        hook.remove()
    if len(looked_up) != 1 or not torch.equal(looked_up[0].cpu(), hashed(tokens, spec, parts)):
        raise UnsupportedLayerError("the n-grams of its layers are hashed in another way")


def _table_of(module: Any) -> Matrix:
    """Return the rows of an embedding.

    Raises:
        UnsupportedLayerError: the kernels do not read them.
    """
    matrix = module.table.matrix if isinstance(module, QuantisedEmbedding) else plain_matrix(module.weight.detach())
    if matrix is None:
        raise UnsupportedLayerError("its embeddings of n-grams are of an unknown type")
    return matrix
