"""``options`` of a request, and their translation to fields of a ``GenerationBody``."""

from pydantic import Field

from server.api.core.bodies.fields import MAX_INT32, Stops
from server.api.core.bodies.other_samplers import OTHER_SAMPLERS, named
from server.api.core.bodies.translation import EXTRA_SAMPLING_FIELDS, split_extra
from server.api.core.service.service import Service
from server.api.ollama.body import OllamaModel
from server.api.openai.fields import MAX_INT64
from server.engine.interface import JsonObject

# Options of Ollama that choose how a model is loaded or computed, with the reason why they have no effect.
BY_FLAGS = "the flags of 'greenroom serve' decide it for all requests"
IGNORED = {
    "num_ctx": "the context length is the same for all requests, that of --max-model-len",
    "num_keep": "no token of a prompt is ever dropped",
    **dict.fromkeys(
        (
            "numa",
            "num_batch",
            "num_gpu",
            "main_gpu",
            "low_vram",
            "f16_kv",
            "logits_all",
            "vocab_only",
            "use_mmap",
            "use_mlock",
            "embedding_only",
            "num_thread",
        ),
        BY_FLAGS,
    ),
}

# The names that fields of a GenerationBody have in a request.
NAMES = {
    **{name: f"options.{name}" for name in (*EXTRA_SAMPLING_FIELDS, *OTHER_SAMPLERS, "temperature", "top_p", "stop")},
    "max_tokens": "options.num_predict",
    "repetition_penalty": "options.repeat_penalty",
}


class Options(OllamaModel):
    """Sampling parameters; 0 or less in ``num_predict`` is as many tokens as fit."""

    temperature: float | None = Field(None, ge=0, le=2)
    num_predict: int | None = Field(
        None, ge=-MAX_INT32, le=MAX_INT32, validation_alias=named("max_tokens", "num_predict", "max_tokens")
    )
    top_k: int | None = Field(None, ge=-1, le=MAX_INT32)
    top_p: float | None = Field(None, ge=0, le=1)
    min_p: float | None = Field(None, ge=0, le=1)
    seed: int | None = Field(None, ge=-MAX_INT64 - 1, le=MAX_INT64)
    stop: Stops = Field([])
    repeat_penalty: float | None = Field(
        None, ge=0.01, le=2, validation_alias=named("repetition_penalty", "repeat_penalty", "repetition_penalty")
    )
    repeat_last_n: int | None = Field(None, ge=-1, le=MAX_INT32)
    presence_penalty: float = Field(0, ge=-2, le=2)
    frequency_penalty: float = Field(0, ge=-2, le=2)

    def note_ignored(self, service: Service) -> None:
        """Log the options that have no effect."""
        _, unknown = split_extra(self.model_extra)
        for name in unknown:
            if name in IGNORED:
                service.unknown_fields.note_known([f"options.{name}"], IGNORED[name])
            else:
                service.unknown_fields.note([f"options.{name}"])

    def for_generation(self) -> JsonObject:
        """Return the fields of a ``GenerationBody``."""
        passed, _ = split_extra(self.model_extra)
        penalties: JsonObject = {
            "repetition_penalty": self.repeat_penalty,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
        }
        if self.repeat_last_n == 0:  # no token counts
            penalties = {"repetition_penalty": 1.0}
        is_limited = self.num_predict is not None and self.num_predict > 0
        return {
            **passed,
            "temperature": self.temperature,
            "max_tokens": self.num_predict if is_limited else None,
            "top_k": self.top_k,
            "top_p": self.top_p,
            "min_p": self.min_p,
            "seed": None if self.seed == -1 else self.seed,  # Ollama's default, a random one
            "stop": self.stop,
            "repeat_last_n": self.repeat_last_n or None,
            **penalties,
        }
