"""The token limit and the sampling parameters of each choice of a request."""

from hashlib import blake2b

from server.api.core.errors.api_errors import ContextLengthError, InvalidRequestError
from server.api.openai.bodies import GenerationBody
from server.api.openai.muted_tokens import NONE_MUTED, MutedTokens
from server.engine.interface import GrammarSpec, SamplingDefaults, SamplingParams

SEED_BYTES = 8


def max_tokens_for(num_prompt_tokens: int, max_model_len: int, body: GenerationBody, prompt_field: str) -> int:
    """Return the token limit of a completion. The default limit is cut to what fits the model, a requested one is not.

    Raises:
        ContextLengthError: the prompt leaves no tokens for the completion, or fewer than requested.

    """
    num_left = max_model_len - num_prompt_tokens
    requested = None if body.is_unlimited else body.requested_max_tokens
    if body.is_unlimited and num_left >= 1:
        return num_left
    if requested is None and num_left >= 1:
        return min(num_left, body.default_max_tokens or num_left)
    if requested is not None and (requested <= num_left or (body.may_cut_max_tokens and num_left >= 1)):
        return min(requested, num_left)
    num_wanted = 1 if requested is None else requested
    raise ContextLengthError(
        f"This model's maximum context length is {max_model_len} tokens. However, you requested "
        f"{num_prompt_tokens + num_wanted} tokens ({num_prompt_tokens} in the prompt, {num_wanted} in the completion). "
        f"Please reduce the length of the prompt or of the completion.{body.parts_of_prompt}",
        prompt_field,
    )


def sampling_params(
    body: GenerationBody,
    defaults: SamplingDefaults,
    max_tokens: int,
    *,
    choice: int,
    grammar: GrammarSpec | None = None,
    written_tokens: frozenset[int] = frozenset(),
    muted: MutedTokens = NONE_MUTED,
) -> SamplingParams:
    """Return the sampling parameters of one choice of a prompt.

    Raises:
        InvalidRequestError: ``min_tokens`` is above ``max_tokens``.

    """
    if defaults.max_new_tokens is not None:
        max_tokens = min(max_tokens, defaults.max_new_tokens)
    if body.min_tokens > max_tokens:
        raise InvalidRequestError(
            f"'min_tokens' is {body.min_tokens}, but at most {max_tokens} tokens are generated: lower it.", "min_tokens"
        )
    repetition_penalty = body.repetition_penalty
    temperature, top_p = body.temperature, body.top_p
    if top_p == 0:  # only the likeliest token is left
        temperature, top_p = 0.0, 1.0
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=defaults.temperature if temperature is None else temperature,
        top_p=defaults.top_p if top_p is None else top_p,
        top_k=defaults.top_k if body.top_k is None else max(body.top_k, 0),
        min_p=defaults.min_p if body.min_p is None else body.min_p,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        repetition_penalty=defaults.repetition_penalty if repetition_penalty is None else repetition_penalty,
        logit_bias=tuple(body.logit_bias.items()),
        allowed_token_ids=None if body.allowed_token_ids is None else frozenset(body.allowed_token_ids),
        bad_words=muted.sequences,
        masked_tokens=muted.anywhere,
        masked_first_tokens=muted.first,
        seed=None if body.seed is None else choice_seed(body.seed, choice),
        stop=tuple(body.stop) or defaults.stop,
        stop_token_ids=frozenset(body.stop_token_ids),
        ignore_eos=body.ignore_eos,
        min_tokens=body.min_tokens,
        logprobs=body.num_logprobs,
        prompt_logprobs=body.num_prompt_logprobs,
        grammar=grammar,
        written_tokens=written_tokens,
    )


def choice_seed(seed: int, choice: int) -> int:
    """Return the seed of one choice of a prompt: the given one for the first, a mixture with the index for the others.

    So no choice draws the random numbers of a choice of another seed, such as the next one.
    """
    if choice == 0:
        return seed
    digest = blake2b(f"{seed} {choice}".encode(), digest_size=SEED_BYTES).digest()
    return int.from_bytes(digest, "little", signed=True)
