"""The decoder: Mixtral with a router that is causal."""

from __future__ import annotations

from transformers import MixtralForCausalLM

from server.model.greenroom_moe.configuration import GreenroomMoeConfig
from server.model.greenroom_moe.mixture import RoutedExperts

CAUSAL = ("top_k", "switch")


class GreenroomMoeForCausalLM(MixtralForCausalLM):  # type: ignore[misc]
    """A causal language model whose layers have the config's router.

    Raises:
        ValueError: the router looks at later tokens, or counts them.
    """

    config_class = GreenroomMoeConfig
    config: GreenroomMoeConfig

    def __init__(self, config: GreenroomMoeConfig):
        if config.router_type not in CAUSAL:
            raise ValueError(
                f"the router {config.router_type!r} decides with tokens that are not written yet, so a decoder can't "
                f"use it; take {' or '.join(CAUSAL)}"
            )
        if config.router_type == "switch" and config.eval_capacity_factor is not None:
            raise ValueError(
                f"eval_capacity_factor {config.eval_capacity_factor} makes room by the number of tokens, of which some "
                "are not written yet, so a decoder can't use it; set it to null"
            )
        super().__init__(config)
        for layer in self.model.layers:
            layer.mlp = RoutedExperts(config)
        self.post_init()
