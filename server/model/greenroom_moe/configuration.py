"""Config of the small models with any router."""

from __future__ import annotations

from typing import Any, Literal, get_args

from huggingface_hub.dataclasses import strict
from transformers import MixtralConfig

RouterType = Literal["top_k", "switch", "expert_choice", "soft"]


@strict
class GreenroomMoeConfig(MixtralConfig):  # type: ignore[misc]
    """Mixtral's config, with the router and the input of the encoders.

    Attributes:
        router_type: the router of every layer.
        capacity_factor: of ``switch`` while it is trained, None for no capacity; of ``expert_choice`` always, the mean
            number of experts of a token.
        eval_capacity_factor: of ``switch`` otherwise; with one, what is computed depends on what else is in the batch.
        slots_per_expert: of ``soft``.
        has_router_noise: ``top_k`` adds noise with a learned scale while it is trained.
        image_size: height and width of images in pixels; 0 for text.
        patch_size: height and width of a patch in pixels.
        num_channels: of images.
    """

    model_type = "greenroom_moe"

    router_type: str = "top_k"
    capacity_factor: float | None = None
    eval_capacity_factor: float | None = None
    slots_per_expert: int = 1
    has_router_noise: bool = False
    image_size: int = 0
    patch_size: int = 2
    num_channels: int = 1

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.router_type not in get_args(RouterType):
            raise ValueError(f"router_type {self.router_type!r} is none of {', '.join(get_args(RouterType))}")
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} is no multiple of patch_size {self.patch_size}")

        if self.image_size and self.num_channels not in {1, 3}:
            raise ValueError(f"num_channels {self.num_channels} is neither 1 (grey) nor 3 (colours)")

    @property
    def num_patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2
