"""Step-3.5, which is the text part of Step-3.7 with a head of its own.

transformers computes the decoder (``Step3p7TextModel``), but has no class that writes text with it alone. Importing
this module registers one, and the names of published tensors.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, GenerationMixin
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_utils import slice_logits_to_keep
from transformers.models.step3p7.configuration_step3p7 import Step3p7TextConfig
from transformers.models.step3p7.modeling_step3p7 import Step3p7PreTrainedModel, Step3p7TextModel


class Step3p5ForCausalLM(Step3p7PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """Mirrors ``Step3p7ForConditionalGeneration`` without its vision tower."""

    config_class = Step3p7TextConfig
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012  (as transformers has it)

    def __init__(self, config: Step3p7TextConfig):
        super().__init__(config)
        self.model = Step3p7TextModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self, input_ids: torch.Tensor | None = None, logits_to_keep: int | torch.Tensor = 0, **inputs: Any
    ) -> CausalLMOutputWithPast:
        """Return the logits of some tokens.

        Args:
            input_ids: ``(sequences, tokens)``
            logits_to_keep: how many of the last tokens, or their positions; 0 for all.
            inputs: the decoder's other inputs.
        """
        output = self.model(input_ids=input_ids, **inputs)
        rows = slice_logits_to_keep(output.last_hidden_state, logits_to_keep)
        return CausalLMOutputWithPast(logits=self.lm_head(rows), cache=output.cache)


AutoModelForCausalLM.register(
    Step3p7TextConfig, Step3p5ForCausalLM, exist_ok=True
)  # else a config of transformers is skipped
register_checkpoint_conversion_mapping(
    Step3p5ForCausalLM.__name__,
    # All but those for the parts of Step-3.7, which have the beginning of a name as their pattern.
    [
        entry
        for entry in get_checkpoint_conversion_mapping("step3p7")
        if not any(pattern.startswith("^") for pattern in entry.source_patterns)
    ],
)
