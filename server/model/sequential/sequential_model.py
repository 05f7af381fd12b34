"""Chooses how a sequential model is called: as a decoder alone, or as encoder and decoder."""

from __future__ import annotations

from transformers import PreTrainedModel

from server.model.sequential.decoder_only import DecoderOnly
from server.model.sequential.encoder_decoder import EncoderDecoder


def sequential_model(model: PreTrainedModel) -> DecoderOnly | EncoderDecoder:
    """Wrap a model with the attention and the cache that transformers chooses for it."""
    return EncoderDecoder(model) if model.config.is_encoder_decoder else DecoderOnly(model)
