"""Checks of requests before they are queued."""

from __future__ import annotations

from server.engine.interface import NO_LABELS, NO_TEXT, GenerationRequest, RequestRefusedError, check_sampling
from server.engine.runner import ModelRunner


class RequestValidator:
    """Refuses requests that the model can never run.

    Args:
        runner: runs the model.
        vocab_size: token ids are below it.
        max_model_len: tokens of the longest sequence.
        max_batched_tokens: tokens of the largest step.
    """

    def __init__(self, runner: ModelRunner, vocab_size: int, max_model_len: int, max_batched_tokens: int):
        self._runner, self._vocab_size = runner, vocab_size
        self._max_model_len, self._max_batched_tokens = max_model_len, max_batched_tokens
        self._checked_prompt: tuple[int, ...] = ()  # the choices of a request share one prompt

    def check(self, request: GenerationRequest) -> None:
        """Check prompt, length, images and sampling parameters.

        Raises:
            RequestRefusedError: with the parameter to change.
        """
        self._check_token_ids(request.prompt_ids)
        self._check_length(len(request.prompt_ids), request.sampling.max_tokens)
        self._check_task(request)
        self._check_images(request)
        if self._runner.is_encoder_decoder and request.sampling.prompt_logprobs is not None:
            raise RequestRefusedError(
                "this model's encoder reads the prompt, so prompt tokens have no logprobs; leave out 'echo' or "
                "'logprobs'",
                "logprobs",
            )
        if not self._runner.hidden_size and request.pooling is not None:
            raise RequestRefusedError("this model gives no hidden states, so it has no embeddings", "model")
        check_sampling(request.sampling, self._vocab_size)

    def _check_task(self, request: GenerationRequest) -> None:
        if request.pooling == "classify" and not self._runner.labels:
            raise RequestRefusedError(NO_LABELS, "model")
        if not self._runner.is_encoder:
            return
        if request.pooling is None:
            raise RequestRefusedError(NO_TEXT, "model")
        if self._runner.reads_images and request.media is None:
            raise RequestRefusedError(
                "this model reads images; send each as a data URL (data:image/png;base64,...)", "prompt"
            )
        if len(request.prompt_ids) > self._max_batched_tokens:
            raise RequestRefusedError(
                f"the input has {len(request.prompt_ids)} tokens, which an encoder reads in one step of "
                f"--max-batched-tokens {self._max_batched_tokens}; shorten it or raise the limit",
                "prompt",
            )

    def _check_token_ids(self, prompt: tuple[int, ...]) -> None:
        if not prompt:
            raise RequestRefusedError("the prompt is empty", "prompt")
        if prompt is not self._checked_prompt and (min(prompt) < 0 or max(prompt) >= self._vocab_size):
            unknown = next(token for token in prompt if not 0 <= token < self._vocab_size)
            raise RequestRefusedError(
                f"token id {unknown} is not below {self._vocab_size}, the size of the vocabulary", "prompt"
            )
        self._checked_prompt = prompt

    def _check_length(self, num_prompt_tokens: int, max_tokens: int) -> None:
        if max_tokens < 0 or num_prompt_tokens + max_tokens > self._max_model_len:
            raise RequestRefusedError(
                f"{num_prompt_tokens} prompt tokens and max_tokens {max_tokens} do not fit the context of "
                f"{self._max_model_len} tokens",
                "max_tokens",
            )

    def _check_images(self, request: GenerationRequest) -> None:
        spans = request.media.unsplit_spans if request.media else ()
        largest = max((end - start for start, end in spans), default=0)
        if largest > self._max_batched_tokens:
            raise RequestRefusedError(
                f"an image takes {largest} tokens, which do not fit a step of --max-batched-tokens "
                f"{self._max_batched_tokens}; send a smaller image or raise the limit",
                "messages",
            )
