"""Bodies of ``/score`` and ``/rerank``, as vLLM's."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainValidator

from server.api.core.bodies.fields import MAX_INT32, Text, is_encodable
from server.api.core.bodies.nulls import NullableBody
from server.api.core.choice.adapter_choice import AdapterChoices
from server.api.core.errors.api_errors import InvalidRequestError
from server.api.openai.embeddings import MAX_INPUTS
from server.engine.interface import PoolingOfHidden

# Names of the two sides of a score: any of these pairs.
SIDES = (("text_1", "text_2"), ("queries", "documents"), ("queries", "items"), ("data_1", "data_2"))
SIDE_NAMES = tuple(dict.fromkeys(name for pair in SIDES for name in pair))


def list_of_texts(value: object) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts:
        raise ValueError("must be a string or a list of strings, and not be empty")
    if len(texts) > MAX_INPUTS:
        raise ValueError(f"must hold no more than {MAX_INPUTS} texts, but holds {len(texts)}: split the request")
    if not all(isinstance(text, str) and text and is_encodable(text) for text in texts):
        raise ValueError("must hold valid Unicode strings only, none of them empty")
    return texts


def not_zero(number: int) -> int:
    if number == 0:
        raise ValueError("must be above 0, or -1 for the context of the model")
    return number


Texts = Annotated[list[str], PlainValidator(list_of_texts, json_schema_input_type=str | list[str])]
TokensToKeep = Annotated[int, Field(ge=-1, le=MAX_INT32), AfterValidator(not_zero)]
Limit = Annotated[int, Field(ge=0, le=MAX_INT32)]  # 0: no limit


class ScoringBody(NullableBody, BaseModel):
    """Fields that scores and reranking share; null is the same as leaving a field out."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)

    model: Text | None = None
    pooling: PoolingOfHidden = "mean"
    adapters: AdapterChoices = []
    truncate_prompt_tokens: TokensToKeep | None = None
    truncation_side: Literal["left", "right"] = "right"  # "right" keeps the first tokens
    max_tokens_per_query: Limit = 0
    max_tokens_per_doc: Limit = 0
    priority: int = Field(0, ge=-MAX_INT32, le=MAX_INT32)
    timeout: float | None = Field(None, gt=0)  # seconds

    # Without effect on the cosine of two embeddings.
    user: Any = None
    use_activation: Any = None

    def max_tokens(self, own_limit: int, max_model_len: int) -> int | None:
        """Return the tokens to which a text is cut; None if it is not cut.

        Args:
            own_limit: ``max_tokens_per_query`` or ``max_tokens_per_doc``.
            max_model_len: the context of the model in tokens.

        """
        limits = [own_limit] if own_limit else []
        if self.truncate_prompt_tokens is not None:
            limits.append(max_model_len if self.truncate_prompt_tokens < 0 else self.truncate_prompt_tokens)
        return min(limits, default=None)


class ScoreBody(ScoringBody):
    text_1: Texts | None = None
    text_2: Texts | None = None
    queries: Texts | None = None
    documents: Texts | None = None
    items: Texts | None = None
    data_1: Texts | None = None
    data_2: Texts | None = None

    def sides(self) -> tuple[tuple[str, list[str]], tuple[str, list[str]]]:
        """Return the texts of both sides, each with the name of its field.

        Raises:
            InvalidRequestError: there are not two sides, or they do not fit together.

        """
        names = tuple(name for name in SIDE_NAMES if getattr(self, name) is not None)
        if names not in SIDES:
            pairs = ", or ".join(f"'{first}' and '{second}'" for first, second in SIDES)
            raise InvalidRequestError(f"The body must have {pairs}.", names[-1] if names else SIDE_NAMES[0])
        first, second = ((name, getattr(self, name)) for name in names)
        if len(first[1]) not in (1, len(second[1])):
            raise InvalidRequestError(
                f"'{first[0]}' must hold one text, or as many as '{second[0]}', which holds {len(second[1])}; it holds "
                f"{len(first[1])}.",
                first[0],
            )
        return first, second


class RerankBody(ScoringBody):
    query: Text = Field(min_length=1)
    documents: Texts
    top_n: int = Field(0, ge=0, le=MAX_INT32)  # 0: all documents
