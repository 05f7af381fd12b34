"""Declarations of models, for the files of ``server/model/families``."""

from __future__ import annotations

from server.kernels.native.structures.layers import RouterKind
from server.kernels.native.structures.mixers import GateKind, RopeKind
from server.model.blocks.compressed_attention.declaration import CompressedAttention
from server.model.blocks.gated_delta_net.declaration import GatedDeltaNet
from server.model.blocks.grouped_attention.declaration import GroupedAttention, QueryScale
from server.model.blocks.kimi_delta_attention.declaration import KimiDeltaAttention
from server.model.blocks.latent_attention.declaration import LatentAttention
from server.model.blocks.lightning_attention.declaration import LightningAttention
from server.model.blocks.mamba1.declaration import Mamba1
from server.model.blocks.mamba2.declaration import Mamba2
from server.model.blocks.module.declaration import OwnModule, Role
from server.model.blocks.no_mixer.declaration import NoMixer
from server.model.blocks.short_convolution.declaration import ShortConvolution
from server.model.blocks.workspace import PairAngles
from server.model.declarations.declaration import Declaration, Experts, ImageExperts, Layer, Mlp, Rotary, Router
from server.model.declarations.scaling import head_scaling, latent_scaling

__all__ = [
    "CompressedAttention",
    "Declaration",
    "Experts",
    "GateKind",
    "GatedDeltaNet",
    "GroupedAttention",
    "ImageExperts",
    "KimiDeltaAttention",
    "LatentAttention",
    "Layer",
    "LightningAttention",
    "Mamba1",
    "Mamba2",
    "Mlp",
    "NoMixer",
    "OwnModule",
    "PairAngles",
    "QueryScale",
    "Role",
    "RopeKind",
    "Rotary",
    "Router",
    "RouterKind",
    "ShortConvolution",
    "head_scaling",
    "latent_scaling",
]
