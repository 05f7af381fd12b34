"""An accepted request for embeddings or labels, and its streams from the engine."""

import asyncio
import time
from collections.abc import Sequence
from uuid import uuid4

from server.api.core.access.caller import current_caller
from server.api.core.requests.cost import PROMPT_TOKEN_BYTES
from server.api.core.requests.loaded_model import LoadedModel
from server.engine.interface import (
    ChatPrompt,
    DeadlineExceededError,
    ExpertUsage,
    GenerationRequest,
    Pooling,
    RequestRefusedError,
    SamplingParams,
    TokenEvent,
    TokenStream,
)

NUMBER_BYTES = 32  # of a number of a vector: float32, and its JSON
MAX_CONCURRENT_INPUTS = 32  # inputs of one request that the engine has at a time, so that it does not fill the queue


class Embedding:
    """An accepted request.

    Args:
        prompts: token ids of each input, or the input with its image.
        timeout: time limit of the request in seconds.
        id_prefix: beginning of the request's id.
        max_concurrent: inputs that the engine has at a time.
        is_internal: they are embedded to choose an adapter.

    """

    def __init__(
        self,
        model: LoadedModel,
        prompts: Sequence[Sequence[int] | ChatPrompt],
        pooling: Pooling,
        *,
        priority: int = 0,
        timeout: float | None = None,
        id_prefix: str = "embd-",
        max_concurrent: int = MAX_CONCURRENT_INPUTS,
        is_internal: bool = False,
    ) -> None:
        self._caller = current_caller()
        self._caller.check_priority(priority)
        self.id, self.model = f"{id_prefix}{uuid4().hex}", model.name
        self._prompts = [prompt if isinstance(prompt, ChatPrompt) else ChatPrompt(prompt) for prompt in prompts]
        self.num_prompt_tokens = sum(len(prompt.token_ids) for prompt in self._prompts)
        self.streams: list[TokenStream] = []  # streams of the submitted inputs
        self.expert_usage = ExpertUsage()  # sum over the inputs that are done
        self._loaded_model, self._pooling, self._is_internal = model, pooling, is_internal
        self._priority, self._timeout = priority, timeout
        self._started, self._max_concurrent = time.monotonic(), max_concurrent
        self.auto_choice, self.adapters = None, {} if model.weights is None else model.weights.factors
        model.unfinished[self.id] = self
        self._reservation = model.memory.reserve()

    async def events(self) -> list[TokenEvent]:
        """Return the event of each prompt that holds its vector. Call ``release`` when the reply was sent.

        The memory is released at once if there is no reply.

        Raises:
            RequestRefusedError: the server can never hold so many vectors.
            RequestMemoryError: other requests hold the memory.
            EngineError: one of the prompts failed; the others are cancelled.

        """
        engine = self._loaded_model.engine
        num_numbers = len(self._prompts) * max(engine.hidden_size, len(engine.labels))
        nbytes = NUMBER_BYTES * num_numbers + PROMPT_TOKEN_BYTES * self.num_prompt_tokens
        await self._reservation.take(nbytes, "The vectors of the reply", "input")
        events: dict[int, TokenEvent] = {}
        remaining = iter(enumerate(self._prompts))

        async def work() -> None:
            for index, prompt in remaining:
                events[index] = await self._embed(index, prompt)

        num_workers = self._caller.count_up_to(min(self._max_concurrent, len(self._prompts)))
        workers = [asyncio.create_task(work()) for _ in range(num_workers)]
        try:
            await asyncio.gather(*workers)
        except BaseException:
            self.release()  # the error refers to its frames and they to it, so nothing is dropped soon
            raise
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
        return [events[index] for index in range(len(self._prompts))]

    def release(self) -> None:
        """Return the memory of the vectors; a second call does nothing."""
        self._reservation.release()

    async def _embed(self, index: int, prompt: ChatPrompt) -> TokenEvent:
        request = GenerationRequest(
            f"{self.id}-{index}",
            tuple(prompt.token_ids),
            SamplingParams(max_tokens=0),
            self._priority,
            self._seconds_left(),
            media=prompt.media,
            keeps_stalls=self._loaded_model.keeps_stalls,
            pooling=self._pooling,
            weights=self._loaded_model.weights,
            cache_salt=self._caller.cache_salt(),
            is_internal=self._is_internal,
        )
        try:
            stream = self._loaded_model.engine.submit(request)
        except RequestRefusedError as error:
            raise RequestRefusedError(str(error), "input") from error
        self.streams.append(stream)
        try:
            event = [event async for event in stream][-1]
        except DeadlineExceededError as error:  # names the seconds that were left when the input was submitted
            raise DeadlineExceededError(f"the request was not done within {self._timeout:g} seconds") from error
        finally:
            stream.cancel()
        self.expert_usage += event.expert_usage or ExpertUsage()
        return event

    def _seconds_left(self) -> float | None:
        """Return what is left of the time limit; the engine ends a request that has none left."""
        return None if self._timeout is None else self._timeout - (time.monotonic() - self._started)
