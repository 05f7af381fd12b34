"""The encoders: Mixtral's layers with attention in both directions, over text or over the patches of an image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutput, ImageClassifierOutput, SequenceClassifierOutput
from transformers.models.mixtral.modeling_mixtral import (
    MixtralDecoderLayer,
    MixtralPreTrainedModel,
    MixtralRMSNorm,
    MixtralRotaryEmbedding,
)

from server.model.greenroom_moe.configuration import GreenroomMoeConfig
from server.model.greenroom_moe.mixture import RoutedExperts


class GreenroomMoePreTrainedModel(MixtralPreTrainedModel):  # type: ignore[misc]
    """Base of the encoders.

    ``packs_sequences`` tells that several sequences may share a row, by their ``lengths``; an implementation of
    attention that knows them is needed for it.
    """

    packs_sequences = True
    config_class = GreenroomMoeConfig
    config: GreenroomMoeConfig


class GreenroomMoeEncoder(GreenroomMoePreTrainedModel):
    """Layers that see all tokens, after embeddings of tokens or of patches."""

    def __init__(self, config: GreenroomMoeConfig):
        super().__init__(config)
        if config.image_size:
            size = config.patch_size
            self.embed_patches = nn.Conv2d(config.num_channels, config.hidden_size, size, size)
            self.embed_positions = nn.Embedding(config.num_patches, config.hidden_size)
        else:
            self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList([_layer(config, index) for index in range(config.num_hidden_layers)])
        self.norm = MixtralRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = MixtralRotaryEmbedding(config=config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return the table of tokens, or of the positions of patches."""
        return self.embed_positions if self.config.image_size else self.embed_tokens

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        lengths: Sequence[int] | None = None,
    ) -> BaseModelOutput:
        """Return the hidden states of all tokens.

        Args:
            input_ids: ``(batch, tokens)``.
            attention_mask: ``(batch, tokens)``, 0 for padding; None for no padding.
            pixel_values: ``(batch, channels, height, width)``, instead of the tokens.
            lengths: of the sequences that share the only row, one after the other; images share it too, if given.
        """
        if pixel_values is not None:
            # One by one where they share a row: a convolution over several may add in another order.
            images = [pixel_values] if lengths is None else torch.split(pixel_values, 1)
            patches = torch.cat([self.embed_patches(image) for image in images])
            hidden_states = patches.flatten(2).transpose(1, 2) + self.embed_positions.weight
        else:
            hidden_states = self.embed_tokens(input_ids)
        if lengths is not None:
            hidden_states = hidden_states.reshape(1, -1, hidden_states.shape[-1]).contiguous()
        positions = _positions(lengths or [hidden_states.shape[1]], hidden_states.device)
        seen = create_bidirectional_mask(self.config, hidden_states, attention_mask)
        mask = None if attention_mask is None else attention_mask.bool()
        rotary = self.rotary_emb(hidden_states, position_ids=positions)
        layers: Any = self.layers
        for layer in layers:
            normed = layer.input_layernorm(hidden_states)
            attended, _ = layer.self_attn(hidden_states=normed, position_embeddings=rotary, attention_mask=seen)
            hidden_states = hidden_states + attended
            hidden_states = hidden_states + layer.mlp(layer.post_attention_layernorm(hidden_states), mask, lengths)
        return BaseModelOutput(last_hidden_state=self.norm(hidden_states))


def _positions(lengths: Sequence[int], device: torch.device) -> torch.Tensor:
    """Return the position of each token in its sequence, ``(1, tokens)``."""
    return torch.cat([torch.arange(length, device=device) for length in lengths]).unsqueeze(0)


def _layer(config: GreenroomMoeConfig, index: int) -> MixtralDecoderLayer:
    """Return a layer of Mixtral whose attention sees later tokens too."""
    layer = MixtralDecoderLayer(config, index)
    layer.self_attn.is_causal = False
    layer.mlp = RoutedExperts(config)
    return layer


class _Classifier(GreenroomMoePreTrainedModel):
    """Labels from the mean of the hidden states."""

    def __init__(self, config: GreenroomMoeConfig):
        super().__init__(config)
        self.model = GreenroomMoeEncoder(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def label_logits(self, hidden_states: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        """Return the logits of the labels of sequences that share a row.

        Args:
            hidden_states: of their tokens, ``(tokens, hidden)``.
            lengths: of the sequences.

        Returns:
            ``(sequences, labels)``.
        """
        means = [sequence.mean(0) for sequence in torch.split(hidden_states, list(lengths))]
        return self.score(torch.stack(means))  # type: ignore[no-any-return]

    def _logits(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        """Return the logits of the labels: ``(batch, tokens, hidden)`` to ``(batch, labels)``."""
        if attention_mask is None:
            return self.score(hidden_states.mean(1))  # type: ignore[no-any-return]
        kept = attention_mask.unsqueeze(-1).to(hidden_states.dtype)
        return self.score((hidden_states * kept).sum(1) / kept.sum(1))  # type: ignore[no-any-return]


class GreenroomMoeForSequenceClassification(_Classifier):
    """A text encoder with labels."""

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, labels: torch.Tensor | None = None
    ) -> SequenceClassifierOutput:
        """Return logits ``(batch, labels)``, and the cross entropy with ``labels`` ``(batch,)`` if they are given."""
        logits = self._logits(self.model(input_ids, attention_mask).last_hidden_state, attention_mask)
        return SequenceClassifierOutput(loss=_loss(logits, labels), logits=logits)


class GreenroomMoeForImageClassification(_Classifier):
    """A vision encoder with labels."""

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None) -> ImageClassifierOutput:
        """Return logits ``(batch, labels)``, and the cross entropy with ``labels`` ``(batch,)`` if they are given."""
        logits = self._logits(self.model(pixel_values=pixel_values).last_hidden_state, None)
        return ImageClassifierOutput(loss=_loss(logits, labels), logits=logits)


def _loss(logits: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor | None:
    return None if labels is None else nn.functional.cross_entropy(logits, labels)
