"""Weights with the statistics of trained ones, of any size, which depend on their names and shapes alone.

What trained weights have, and those of ``save_checkpoint`` do not:

- heavy tails: Student's t with four degrees of freedom, and inputs whose weights are larger than others';
- norms whose weights lie between 0.1 and 20, by the layer, and vary within a layer;
- massive activations: a channel of 100 in every token, and channels of 300 to 5,000 in some tokens (``MASSIVE``), at
  which most norms have small weights;
- routers whose rows have much in common, and biases of routers far from zero;
- decays, steps and convolutions of recurrent layers in the ranges in which they are trained.
"""

from __future__ import annotations

import math
import re
import zlib
from functools import cache

import torch

DEGREES = 4  # of freedom of Student's t
POOL = (1 << 22) + 37  # numbers that all weights are taken from; rows of no width repeat in it
MASSIVE = (100.0, 300.0, 2000.0, 5000.0)  # values of channels; the first in every token
EVERY = 3  # tokens of the vocabulary have one of the others
SMALLEST_NORM, LARGEST_NORM = 0.1, 20.0
DAMPED = 0.03  # weight of most norms at massive channels, beside other channels'
EMBEDDINGS = re.compile(r"embed_tokens|backbone\.embeddings|model\.embeddings")
NORM = re.compile(r"norm")
INNER_NORM = re.compile(r"self_attn|linear_attn|mixer\.norm")
LAST_NORM = re.compile(r"model\.norm\.|norm_f|embedding_norm|output_norm")
ROUTER = re.compile(r"(mlp\.gate|feed_forward\.gate|block_sparse_moe\.gate|mixer\.gate|router|router\.proj)\.weight$")
CORRECTION = re.compile(r"e_score_correction_bias|expert_bias|exp_probs_b")


@cache
def numbers() -> torch.Tensor:
    """Numbers of Student's t, whose standard deviation is one."""
    random = torch.Generator().manual_seed(0)
    squares = torch.zeros(POOL)
    for _ in range(DEGREES):
        squares += torch.empty(POOL).normal_(generator=random).square_()
    return torch.empty(POOL).normal_(generator=random) / (squares / DEGREES).sqrt() / math.sqrt(2)


def generator(name: str) -> torch.Generator:
    """Return a source of random numbers that depends on a name."""
    return torch.Generator().manual_seed(zlib.crc32(name.encode()))


def taken(pool: torch.Tensor, name: str, count: int) -> torch.Tensor:
    """Return so many values of a pool, from a place that depends on a name."""
    first = zlib.crc32(name.encode()) % len(pool)
    return (
        torch.cat([pool[first:], *[pool] * (count // len(pool) + 1)])[:count]
        if first + count > len(pool)
        else pool[first : first + count]
    )


def massive_channels(hidden_size: int) -> list[int]:
    """Return the channels with massive activations."""
    return [(137 * (n + 1)) % hidden_size for n in range(len(MASSIVE))]


def trained_like_weights(
    name: str, shape: tuple[int, ...], hidden_size: int, embedding_scale: float = 1
) -> torch.Tensor:
    """Return a parameter in float32.

    Args:
        name: by which a published checkpoint calls it.
        hidden_size: of the model.
        embedding_scale: factor of embeddings in the model.
    """
    if EMBEDDINGS.search(name):
        return embeddings(name, shape) / embedding_scale
    if len(shape) > 1 and "conv" not in name:
        return router(name, shape) if ROUTER.search(name) else matrix(name, shape)
    if NORM.search(name):
        return norm(name, math.prod(shape), hidden_size)
    return other(name, shape)


def other(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Return biases, convolutions, and numbers of recurrent layers, heads and experts."""
    random = generator(name)
    normal, uniform = torch.empty(shape).normal_(generator=random), torch.rand(shape, generator=random)
    if name.endswith("A_log"):
        return torch.log(1 + 15 * uniform)
    if name.endswith("dt_bias"):
        step = torch.exp(uniform * math.log(100)) * 1e-3
        return step + torch.log(-torch.expm1(-step))
    if CORRECTION.search(name):
        return 4 + normal * 0.05
    if name.endswith((".D", "scale", "scalar")):
        return torch.exp(normal * 0.2)
    return normal * (0.5 if "conv" in name or "sinks" in name else 0.1)


def embeddings(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Return embeddings with massive channels."""
    found = taken(numbers(), name, math.prod(shape)).view(shape).clone() * 0.5
    channels = massive_channels(shape[1])
    found[:, channels[0]] = MASSIVE[0] * (1 + 0.1 * found[:, channels[0]])
    for number, (channel, value) in enumerate(zip(channels[1:], MASSIVE[1:], strict=True)):
        found[number :: EVERY * (len(MASSIVE) - 1), channel] = -value if number % 2 else value
    return found


def router(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Return a router's matrix, whose rows have much in common and differ in length."""
    common, own = taken(numbers(), name + " common", shape[1]), taken(numbers(), name, math.prod(shape)).view(shape)
    lengths = torch.exp(0.35 * torch.empty(shape[0], 1).normal_(generator=generator(name)))
    return (common + own) * lengths * shape[1] ** -0.5


def matrix(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Return a matrix, or several, whose inputs have weights of different sizes."""
    factors = torch.exp(0.3 * torch.empty(shape[-1]).normal_(generator=generator(name)))
    factors[:: max(1, shape[-1] // 8)] *= 4
    factors /= factors.square().mean().sqrt()
    return taken(numbers(), name, math.prod(shape)).view(shape) * (factors * shape[-1] ** -0.5)


def norm(name: str, count: int, hidden_size: int) -> torch.Tensor:
    """Return the weights of a norm; those of heads and latents are near one."""
    random = generator(name)
    where = float(torch.rand((), generator=random))
    within = torch.exp(0.3 * torch.empty(count).normal_(generator=random))
    if count != hidden_size or INNER_NORM.search(name):
        return within * 2 ** (2 * where - 1)
    found = within * SMALLEST_NORM * (LARGEST_NORM / SMALLEST_NORM) ** where
    if LAST_NORM.search(name) or zlib.crc32(name.encode()) % 4:
        found[massive_channels(hidden_size)] *= DAMPED
    return found
