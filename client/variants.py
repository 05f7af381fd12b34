"""Expert variants of a server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from client.parsing import dataclass_from


@dataclass(frozen=True)
class Variant:
    """An expert variant: other weights for some experts of the base model. It is served as ``model``."""

    name: str
    model: str
    path: str
    version: int  # a higher one each time that the name is loaded
    layers: tuple[int, ...]
    experts: int  # with weights of the variant's own, added ones included
    experts_added: int
    experts_removed: int
    experts_resident: int  # of its own experts, those in memory
    bytes: int  # of all its tensors
    tokens: int  # routed to its own experts
    num_unfinished: int  # requests that use it now
    num_requests: int  # since it was loaded


def parse_variant(body: Mapping[str, Any]) -> Variant:
    return dataclass_from(
        Variant,
        body,
        layers=tuple(body["layers"]),
        num_unfinished=body["requests"]["unfinished"],
        num_requests=body["requests"]["total"],
    )


def parse_variants(body: Mapping[str, Any]) -> list[Variant]:
    return [parse_variant(variant) for variant in body["data"]]
