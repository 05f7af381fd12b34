"""The kinds of mixers, in the order in which they are tried."""

from __future__ import annotations

from collections.abc import Mapping

from server.model.blocks.compressed_attention.parts import CompressedAttentionParts
from server.model.blocks.declaration import MixerDeclaration
from server.model.blocks.gated_delta_net.parts import GatedDeltaNetParts
from server.model.blocks.grouped_attention.parts import GroupedAttentionParts
from server.model.blocks.kimi_delta_attention.parts import KimiDeltaAttentionParts
from server.model.blocks.latent_attention.parts import LatentAttentionParts
from server.model.blocks.lightning_attention.parts import LightningAttentionParts
from server.model.blocks.mamba1.parts import Mamba1Parts
from server.model.blocks.mamba2.parts import Mamba2Parts
from server.model.blocks.mixer import MixerParts
from server.model.blocks.module.parts import ModuleParts
from server.model.blocks.no_mixer.parts import NoMixerParts
from server.model.blocks.short_convolution.parts import ShortConvolutionParts

MIXERS: tuple[type[MixerParts], ...] = (
    GroupedAttentionParts,
    LatentAttentionParts,
    CompressedAttentionParts,
    GatedDeltaNetParts,
    KimiDeltaAttentionParts,
    LightningAttentionParts,
    ShortConvolutionParts,
    Mamba1Parts,
    Mamba2Parts,
    ModuleParts,  # takes what none of the others is
)

KINDS: tuple[type[MixerParts], ...] = (*MIXERS, NoMixerParts)
PARTS: Mapping[type[MixerDeclaration], type[MixerParts]] = {kind.declares: kind for kind in KINDS}
DECLARATIONS: tuple[type[MixerDeclaration], ...] = tuple(kind.declares for kind in KINDS)
