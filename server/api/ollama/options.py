"""``options`` of a request, and their translation to fields of a ``GenerationBody``."""

from typing import Annotated, Any

from pydantic import Field

from server.api.core.bodies.fields import MAX_INT32, Stops, only
from server.api.core.bodies.translation import EXTRA_SAMPLING_FIELDS, split_extra
from server.api.core.service.service import Service
from server.api.ollama.body import OllamaModel
from server.api.openai.fields import MAX_INT64
from server.engine.interface import JsonObject

NO_MIROSTAT = "must be 0, because this server samples without mirostat: leave it out"
NO_FILTER = "must be 1, because this server does not filter tokens so: use 'min_p' or 'top_p'"

# Options of Ollama that choose how a model is loaded or computed, with the reason why they have no effect.
BY_FLAGS = "the flags of 'greenroom serve' decide it for all requests"
IGNORED = {
    "num_ctx": "the context length is the same for all requests, that of --max-model-len",
    "repeat_last_n": "penalties are over all tokens of the prompt and the answer",
    "penalize_newline": "penalties treat line breaks as all other tokens",
    "mirostat_tau": "this server samples without mirostat",
    "mirostat_eta": "this server samples without mirostat",
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
    **{name: f"options.{name}" for name in (*EXTRA_SAMPLING_FIELDS, "temperature", "top_p", "stop")},
    "max_tokens": "options.num_predict",
    "repetition_penalty": "options.repeat_penalty",
}


class Options(OllamaModel):
    """Sampling parameters; 0 or less in ``num_predict`` is as many tokens as fit."""

    temperature: float | None = Field(None, ge=0, le=2)
    num_predict: int | None = Field(None, ge=-MAX_INT32, le=MAX_INT32)
    top_k: int | None = Field(None, ge=-1, le=MAX_INT32)
    top_p: float | None = Field(None, ge=0, le=1)
    min_p: float | None = Field(None, ge=0, le=1)
    seed: int | None = Field(None, ge=-MAX_INT64 - 1, le=MAX_INT64)
    stop: Stops = Field([])
    repeat_penalty: float | None = Field(None, ge=0.01, le=2)
    repeat_last_n: int | None = Field(None, ge=-1, le=MAX_INT32)
    presence_penalty: float = Field(0, ge=-2, le=2)
    frequency_penalty: float = Field(0, ge=-2, le=2)
    mirostat: Annotated[Any, only(0, why=NO_MIROSTAT)] = 0
    tfs_z: Annotated[Any, only(1, 1.0, why=NO_FILTER)] = 1
    typical_p: Annotated[Any, only(1, 1.0, why=NO_FILTER)] = 1

    def note_ignored(self, service: Service) -> None:
        """Log the options that have no effect."""
        _, unknown = split_extra(self.model_extra)
        given = [*unknown, *(["repeat_last_n"] if self.repeat_last_n else [])]
        for name in given:
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
            **penalties,
        }
