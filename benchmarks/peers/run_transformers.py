"""Runs transformers with greedy decoding and a KV cache: ``run_transformers.py MODEL --threads 2``.

With ``--sample OUT.json``, it writes token ids sampled from the model. With ``--logits IDS.json OUT.npy``, it writes
the logits of one sequence as float32, ``(tokens, vocabulary)``. Both are computed in ``--dtype``.
"""

from __future__ import annotations

import argparse
import json
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from protocol import Prompts, send, serve  # before modules that may print

# isort: split
import numpy as np
import torch
from transformers import AutoModelForCausalLM, DynamicCache

NUM_PREFIX_IDS = 8  # random token ids at the start of a sampled text


class Runner:
    def __init__(self, path: str, dtype: torch.dtype):
        self._model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype).eval()

    @torch.inference_mode()
    def generate(self, prompts: Prompts, new_tokens: int, seconds: float) -> dict[str, Any]:
        cache, ids = DynamicCache(config=self._model.config), torch.tensor(prompts)
        started = time.perf_counter()
        last = self._next(ids, cache)
        first = time.perf_counter()
        done, now = 0, first
        while done < new_tokens - 1 and now - first < seconds:
            last = self._next(last, cache)
            done, now = done + 1, time.perf_counter()
        return {"first_token_seconds": first - started, "tokens": done * len(prompts), "seconds": now - first}

    def _next(self, ids: torch.Tensor, cache: DynamicCache) -> torch.Tensor:
        output = self._model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return output.logits[:, -1].argmax(-1, keepdim=True)

    @torch.inference_mode()
    def logits(self, ids: list[int]) -> np.ndarray:
        return self._model(torch.tensor([ids]), use_cache=False).logits[0].float().numpy()

    @torch.inference_mode()
    def sample(self, num_tokens: int, seed: int) -> list[int]:
        random = torch.Generator().manual_seed(seed)
        ids = torch.randint(300, self._model.config.vocab_size, (1, NUM_PREFIX_IDS), generator=random)
        cache, text = DynamicCache(config=self._model.config), ids[0].tolist()
        while len(text) < num_tokens:
            probabilities = self._model(ids, past_key_values=cache, use_cache=True).logits[0, -1].softmax(-1)
            ids = torch.multinomial(probabilities, 1, generator=random)[None]
            text.append(int(ids))
        return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--sample", type=Path)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--logits", nargs=2, type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    runner = Runner(options.model, getattr(torch, options.dtype))
    if options.sample:
        options.sample.write_text(json.dumps(runner.sample(options.tokens, options.seed)))
    if options.logits:
        ids, out = options.logits
        np.save(out, runner.logits(json.loads(ids.read_text())))
    if options.sample or options.logits:
        send(done=True)
        return
    serve(runner.generate, version=f"transformers {version('transformers')}, torch {version('torch')}")


if __name__ == "__main__":
    main()
