"""Runs llama.cpp through the C interface of llama-cpp-python: ``run_llama_cpp.py FILE.gguf --threads 2``.

With ``--logits IDS.json OUT.npy``, it writes the float32 logits of one sequence of token ids, ``(tokens, vocabulary)``;
``--one-by-one`` computes them token by token, as in decoding.

With ``--contexts FOLDER``, states after prompts are kept in files, and loaded instead of reading a prompt again.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

from protocol import Prompts, send, serve  # before modules that may print

# isort: split
import llama_cpp as llama
import numpy as np
from kept_contexts import KeptContexts

UBATCH_TOKENS = 512


class Context:
    """Context manager of a llama.cpp context and a batch, which are freed at the end."""

    def __init__(self, model: Any, num_sequences: int, num_tokens: int, batch_tokens: int, threads: int):
        parameters = llama.llama_context_default_params()
        parameters.n_ctx = num_tokens
        parameters.n_batch = max(UBATCH_TOKENS, batch_tokens)
        parameters.n_ubatch = UBATCH_TOKENS
        parameters.n_seq_max = num_sequences
        parameters.n_threads = parameters.n_threads_batch = threads
        parameters.kv_unified = True
        self.context = llama.llama_init_from_model(model, parameters)
        self.batch = llama.llama_batch_init(parameters.n_batch, 0, num_sequences)
        self._vocabulary = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
        self._count = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        llama.llama_batch_free(self.batch)
        llama.llama_free(self.context)

    def add(self, token: int, position: int, sequence: int, *, wants_logits: bool) -> None:
        batch, index = self.batch, self._count
        batch.token[index], batch.pos[index] = token, position
        batch.n_seq_id[index], batch.logits[index] = 1, int(wants_logits)
        batch.seq_id[index][0] = sequence
        self._count += 1

    def run(self) -> None:
        self.batch.n_tokens, self._count = self._count, 0
        if llama.llama_decode(self.context, self.batch):
            raise RuntimeError("llama_decode failed")
        llama.llama_synchronize(self.context)

    def logits(self, index: int) -> np.ndarray:
        return np.ctypeslib.as_array(llama.llama_get_logits_ith(self.context, index), (self._vocabulary,))


class States:
    """States of sequences after prompts, recurrent ones too, in files of a folder."""

    def __init__(self, kept: KeptContexts):
        self._kept = kept

    def fill(self, context: Context, sequence: int, prompt: list[int]) -> int:
        """Bring a sequence to the state before a prompt's last token; return the number of its tokens.

        The longest kept beginning of the prompt is loaded. What had to be read is kept. Prompts of a single batch are
        left to be read anew.
        """
        if len(prompt) <= UBATCH_TOKENS:
            return 0
        wanted = prompt[:-1]
        start = self._kept.longest(wanted)
        if start:
            self._load(context, sequence, wanted[:start])
        if start < len(wanted):
            for position in range(start, len(wanted)):
                context.add(wanted[position], position, sequence, wants_logits=False)
            context.run()
            self._save(context, sequence, wanted)
        return len(wanted)

    def _load(self, context: Context, sequence: int, ids: list[int]) -> None:
        path, found, count = self._kept.path(ids), (llama.llama_token * len(ids))(), ctypes.c_size_t()
        name = str(path).encode()
        llama.llama_state_seq_load_file(context.context, name, sequence, found, len(ids), ctypes.byref(count))
        if found[: count.value] != ids:
            raise RuntimeError(f"llama.cpp could not load {path}; delete it, so that it is made again")

    def _save(self, context: Context, sequence: int, ids: list[int]) -> None:
        path = self._kept.path(ids)
        part = path.with_suffix(".part")
        tokens = (llama.llama_token * len(ids))(*ids)
        if not llama.llama_state_seq_save_file(context.context, str(part).encode(), sequence, tokens, len(ids)):
            raise RuntimeError(f"llama.cpp could not write {part}")
        part.replace(path)


class Runner:
    def __init__(
        self, path: str, threads: int, contexts: Path | None = None, *, repacks: bool = True, is_sampled: bool = False
    ):
        llama.llama_backend_init()
        self._log = llama.llama_log_callback(lambda *_: None)
        llama.llama_log_set(self._log, ctypes.c_void_p(0))
        parameters = llama.llama_model_default_params()
        parameters.use_extra_bufts = repacks
        self._model = llama.llama_model_load_from_file(path.encode(), parameters)
        self._threads, self._rng = threads, np.random.default_rng(0) if is_sampled else None
        self._states = None if contexts is None else States(KeptContexts(contexts, Path(path).stem))

    def generate(self, prompts: Prompts, new_tokens: int, seconds: float) -> dict[str, Any]:
        count, length = len(prompts), len(prompts[0])
        with Context(self._model, count, count * (length + new_tokens + 32), count * length, self._threads) as context:
            started = time.perf_counter()
            start = 0
            if self._states:
                start = max(self._states.fill(context, sequence, prompt) for sequence, prompt in enumerate(prompts))
            for sequence, prompt in enumerate(prompts):
                for position in range(start, length):
                    context.add(prompt[position], position, sequence, wants_logits=position == length - 1)
            context.run()
            last = [self._choose(context.logits((row + 1) * (length - start) - 1)) for row in range(count)]
            first = time.perf_counter()
            done, now = 0, first
            while done < new_tokens - 1 and now - first < seconds:
                for sequence, token in enumerate(last):
                    context.add(token, length + done, sequence, wants_logits=True)
                context.run()
                last = [self._choose(context.logits(row)) for row in range(count)]
                done, now = done + 1, time.perf_counter()
        return {"first_token_seconds": first - started, "tokens": done * count, "seconds": now - first}

    def _choose(self, logits: np.ndarray) -> int:
        """Return the likeliest token, or one sampled at temperature 1."""
        if self._rng is None:
            return int(logits.argmax())
        return int((logits + self._rng.gumbel(size=len(logits))).argmax())

    def sequence_logits(self, ids: list[int], *, one_by_one: bool) -> np.ndarray:
        with Context(self._model, 1, len(ids) + 32, len(ids), self._threads) as context:
            if not one_by_one:
                for position, token in enumerate(ids):
                    context.add(token, position, 0, wants_logits=True)
                context.run()
                return np.stack([context.logits(row).copy() for row in range(len(ids))])
            rows = []
            for position, token in enumerate(ids):
                context.add(token, position, 0, wants_logits=True)
                context.run()
                rows.append(context.logits(0).copy())
            return np.stack(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--logits", nargs=2, type=Path)
    parser.add_argument("--one-by-one", action="store_true")
    parser.add_argument("--contexts", type=Path, metavar="FOLDER")
    parser.add_argument(
        "--no-repack",
        action="store_true",
        help="leave all matrices in the mapped file, whose pages the kernel may drop",
    )
    parser.add_argument("--sampled", action="store_true", help="decode at temperature 1 instead of greedily")
    options = parser.parse_args()
    runner = Runner(
        options.model,
        options.threads,
        options.contexts,
        repacks=not options.no_repack,
        is_sampled=options.sampled,
    )
    if options.logits:
        ids, out = options.logits
        np.save(out, runner.sequence_logits(json.loads(ids.read_text()), one_by_one=options.one_by_one))
        send(done=True)
        return
    system = llama.llama_print_system_info().decode().strip()
    serve(runner.generate, version=f"llama-cpp-python {version('llama-cpp-python')}", system=system)


if __name__ == "__main__":
    main()
