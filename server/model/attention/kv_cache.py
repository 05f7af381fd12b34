"""The tensors of the KV cache: fixed blocks of tokens, in groups of layers with the same window."""

from __future__ import annotations

import mmap
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from server.model.attention.reserved_tensor import ReservedTensor

CPU = torch.device("cpu")
LEAST_EXTENT = 16  # blocks


@dataclass(frozen=True)
class KVShape:
    """The shape of one layer's key and value of a token."""

    kv_heads: int
    key_dim: int
    value_dim: int
    dtype: torch.dtype
    is_latent: bool = False  # one row a token, whose first ``value_dim`` numbers are also the value (MLA)
    index_dim: int = 0  # numbers of a token that an indexer keeps in rows of their own

    @property
    def dim(self) -> int:
        """The width of a row. Keys and values are attended at one width; the narrower is padded with zeros."""
        return max(self.key_dim, self.value_dim)

    @property
    def token_bytes(self) -> int:
        numbers = self.kv_heads * self.dim * (1 if self.is_latent else 2) + self.index_dim
        return numbers * self.dtype.itemsize

    @property
    def index(self) -> KVShape:
        """The shape of what an indexer keeps."""
        return KVShape(1, self.index_dim, self.index_dim, self.dtype, is_latent=True)


@dataclass(frozen=True)
class KVGroup:
    """Attention layers with the same window, which therefore need the same blocks."""

    window: int | None  # tokens a query sees, its own included; None for all
    shapes: Mapping[int, KVShape]  # by attention layer
    is_chunked: bool = False  # the window is a fixed chunk instead of a sliding one
    bytes_elsewhere: Mapping[int, int] = field(default_factory=dict)  # a token, by layers with caches of their own
    depends_on_prompt: bool = False  # what is kept of a token depends on where the prompt of its sequence ends

    @property
    def num_layers(self) -> int:
        return len(self.shapes) + len(self.bytes_elsewhere)

    @property
    def token_bytes(self) -> int:
        return sum(shape.token_bytes for shape in self.shapes.values()) + sum(self.bytes_elsewhere.values())


def group_layers(
    shapes: Mapping[int, KVShape], windows: Mapping[int, int | None], chunked: Collection[int] = ()
) -> tuple[KVGroup, ...]:
    """Group layers by their window: full attention first, then the narrowest.

    Args:
        windows: by layer.
        chunked: layers whose windows are chunks.
    """
    rules = {layer: (window, layer in chunked) for layer, window in windows.items()}
    return tuple(
        KVGroup(rule[0], {layer: shape for layer, shape in shapes.items() if rules[layer] == rule}, rule[1])
        for rule in sorted(set(rules.values()), key=lambda rule: (rule[0] or 0, rule[1]))
    )


@dataclass(frozen=True)
class LayerCache:
    """One layer's tensors: ``keys`` and ``values`` ``(1, kv_heads, slots, dim)``, the same tensor for a latent.

    ``index`` is what an indexer keeps, ``(1, 1, slots, index_dim)``; None without one.
    """

    shape: KVShape
    keys: torch.Tensor
    values: torch.Tensor
    index: torch.Tensor | None = None

    def write(self, slots: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
        """Write ``key (kv_heads, tokens, key_dim)`` and, unless latent, ``value (kv_heads, tokens, value_dim)``.

        Args:
            slots: of the tokens, ``(tokens,)``.
        """
        self.keys[0, ..., : self.shape.key_dim].index_copy_(1, slots, key)
        if not self.shape.is_latent:
            self.values[0, ..., : self.shape.value_dim].index_copy_(1, slots, value)


def extent_blocks(group: KVGroup, block_size: int, page_bytes: int = mmap.PAGESIZE) -> int:
    """Return how many neighbouring blocks get memory together: enough to fill full pages in each head of each layer.

    Args:
        block_size: tokens a block.
    """
    shapes = [*group.shapes.values(), *(shape.index for shape in group.shapes.values() if shape.index_dim)]
    rows = {shape.dim * shape.dtype.itemsize * block_size for shape in shapes}
    count = LEAST_EXTENT
    while any(count * nbytes % page_bytes for nbytes in rows):
        count *= 2  # ends, since a page is a power of two
    return count


class KVCache:
    """Keys and values of all sequences. The engine decides which sequence owns which block.

    A head's rows are contiguous, so that neighbouring blocks are one strided view for attention. In host memory a block
    takes no memory before it is written, and none after ``release``.

    Args:
        groups: layers by their window; each group has blocks of its own.
        num_blocks: of each group, at most.
        block_size: tokens a block.
    """

    def __init__(
        self, groups: Sequence[KVGroup], num_blocks: Sequence[int], block_size: int, device: torch.device = CPU
    ):
        self.groups, self.num_blocks, self.block_size, self.device = groups, num_blocks, block_size, device
        self.group_of = {layer: index for index, group in enumerate(groups) for layer in group.shapes}
        self.layers: dict[int, LayerCache] = {}
        self._reserved: list[list[tuple[KVShape, ReservedTensor]]] = [[] for _ in groups]
        for index, (group, blocks) in enumerate(zip(groups, num_blocks, strict=True)):
            extent = extent_blocks(group, block_size)
            rows = -(-blocks // extent) * extent * block_size  # each head begins with a page
            for layer, shape in group.shapes.items():
                size = (1, shape.kv_heads, rows, shape.dim)
                keys = self._allocate(index, shape, size)
                values = keys if shape.is_latent else self._allocate(index, shape, size)
                own = None
                if shape.index_dim:
                    own = self._allocate(index, shape.index, (1, 1, rows, shape.index_dim))
                self.layers[layer] = LayerCache(shape, keys, values, own)

    def release(self, group: int, first_block: int, num_blocks: int) -> None:
        """Return the memory of neighbouring blocks to the system; memory of a device is kept."""
        for shape, reserved in self._reserved[group]:
            row_bytes = shape.dim * shape.dtype.itemsize
            head_bytes = reserved.tensor.shape[2] * row_bytes
            offset, nbytes = (count * self.block_size * row_bytes for count in (first_block, num_blocks))
            for head in range(shape.kv_heads):
                reserved.release(head * head_bytes + offset, nbytes)

    def _allocate(self, group: int, shape: KVShape, size: tuple[int, ...]) -> torch.Tensor:
        if self.device.type != "cpu":
            return torch.zeros(size, dtype=shape.dtype, device=self.device)
        reserved = ReservedTensor(size, shape.dtype)
        self._reserved[group].append((shape, reserved))
        return reserved.tensor
