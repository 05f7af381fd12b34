"""Small Mixture-of-Experts models with any router: a decoder, a text encoder and a vision encoder.

They are Mixtral's layers with a router of ``server.model.routers``, as classes of transformers: ``save_pretrained`` and
``from_pretrained`` write and read the hub's layout. Importing this package registers them with transformers.
"""

from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
)

from server.model.greenroom_moe.configuration import GreenroomMoeConfig
from server.model.greenroom_moe.decoder import GreenroomMoeForCausalLM
from server.model.greenroom_moe.encoder import (
    GreenroomMoeForImageClassification,
    GreenroomMoeForSequenceClassification,
)

AutoConfig.register(GreenroomMoeConfig.model_type, GreenroomMoeConfig, exist_ok=True)
for auto_class, model_class in (
    (AutoModelForCausalLM, GreenroomMoeForCausalLM),
    (AutoModelForSequenceClassification, GreenroomMoeForSequenceClassification),
    (AutoModelForImageClassification, GreenroomMoeForImageClassification),
):
    auto_class.register(GreenroomMoeConfig, model_class, exist_ok=True)

__all__ = [
    "GreenroomMoeConfig",
    "GreenroomMoeForCausalLM",
    "GreenroomMoeForImageClassification",
    "GreenroomMoeForSequenceClassification",
]
