"""Loads the compiled kernels and calls them.

The library has a plain C interface, so one build works with every Python and every torch. ``structures`` declares what
its calls take; ``src/interface.py`` writes it from the C++ sources.
"""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Callable
from ctypes import Structure, byref, c_char_p, c_int64, sizeof
from functools import cache
from pathlib import Path
from threading import get_ident
from typing import Any

import numpy as np

from server.deferred_work import DeferredWork
from server.kernels.native.structures.decode_run import DecodeRun
from server.kernels.native.structures.experts import Combination, ExpertBatch, ExpertShape
from server.kernels.native.structures.functions import FUNCTIONS, INTERFACE
from server.kernels.native.structures.layers import HeadCall, LayerSpec, StepCall
from server.kernels.native.structures.matrices import LinearCall, Matrix
from server.kernels.native.structures.sampling import SamplingCall

PATH = Path(__file__).with_name("libgreenroom_kernels.so")
LEVELS = ("portable", "avx2", "avx512", "avx512_bf16", "amx")  # each includes those before it
FAST_WITH_CODES = ("avx512_bf16",)  # decode coded bfloat16 faster than memory is read; never measured for amx
UNTIMED = ("amx",)  # used only if named, since their speed was never measured; as in levels/level.cpp


class KernelError(RuntimeError):
    """The compiled kernels are missing, or a call failed."""


@cache
def load() -> ctypes.CDLL:
    """Load the library.

    Raises:
        KernelError: it was not built, or is of another version.
    """
    try:
        library = ctypes.CDLL(str(PATH))
    except OSError as error:
        raise KernelError(f"the native kernels can't be loaded: {error}") from error
    if _interface_of(library) != INTERFACE:
        raise KernelError(f"{PATH.name} is from another version of Greenroom; install Greenroom again")
    for name, (result, arguments) in FUNCTIONS.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


def _interface_of(library: ctypes.CDLL) -> str | None:
    """The digest of the interface that the library was compiled with; None of older versions."""
    if not hasattr(library, "greenroom_interface"):
        return None
    library.greenroom_interface.restype = c_char_p
    return str(library.greenroom_interface().decode())


@cache
def is_available() -> bool:
    """Return True if there are native kernels."""
    try:
        load()
    except KernelError:
        return False
    return True


def impossible(check: str, described: Structure, *sizes: int) -> str | None:
    """Return what a description has that the kernels can't run, such as "a negative window".

    The kernels read memory by the counts and offsets of a description without checking them again, so every
    description that is made from a file goes through this first.

    Args:
        check: a function such as ``greenroom_check_layer``.
        sizes: the sizes that it takes (``src/api.cpp``).
    """
    reason = getattr(load(), check)(byref(described), *sizes)
    return None if reason is None else str(reason.decode())


def best_level(most: str | None = None) -> str:
    """Return the highest level up to ``most`` that this processor can run; by default those ``UNTIMED`` do not count.

    Raises:
        KernelError: there is no such level.
    """
    name = load().greenroom_level(None if most is None else most.encode())
    if name is None:
        raise KernelError(f"{most!r} is not a kernel level; choose one of {', '.join(LEVELS)}")
    return str(name.decode())


class Kernels:
    """The compiled kernels and their threads; one call runs at a time.

    Args:
        num_threads: the number of threads, the caller's included.
        level: the highest instruction set to use, one of ``LEVELS``; by default the processor's highest
            that is not ``UNTIMED``.
        rounds_float32: whether rows in float32 may be rounded before a product, as those in bfloat16 are.

    Attributes:
        deferred: work of the thread that runs steps. ``layers`` and ``head`` run it while other threads compute.
    """

    def __init__(self, num_threads: int, level: str | None = None, *, rounds_float32: bool = False):
        self.rounds_float32 = rounds_float32
        self._handle = None  # close() also runs if the constructor fails
        self.deferred = DeferredWork()
        self._running: tuple[int, Callable[[], None]] | None = None  # the thread of a run of steps, and what ends it
        self.level = best_level(level)
        self.num_threads = num_threads
        self._library = load()
        self._handle = self._library.greenroom_open(num_threads, self.level.encode())
        if not self._handle:
            raise KernelError(f"can't start {num_threads} threads for the native kernels; set fewer with --threads")
        self._results = np.empty(0, dtype=np.float32)

    @property
    def gains_from_codes(self) -> bool:
        """True if products with few rows are faster with weights in coded than in plain bfloat16."""
        return self.level in FAST_WITH_CODES

    def close(self) -> None:
        """End the threads."""
        if self._handle:
            self._library.greenroom_close(self._handle)
            self._handle = None

    __del__ = close

    def results(self, count: int) -> int:
        """The address of a buffer of ``count`` float32 numbers for experts' results; valid until a larger call."""
        if len(self._results) < count:
            self._results = np.empty(count * 5 // 4, dtype=np.float32)
        return int(self._results.ctypes.data)

    def linear(self, call: LinearCall) -> None:
        self._call(self._library.greenroom_linear, byref(call))

    def experts(self, shape: ExpertShape, batch: ExpertBatch) -> None:
        self._call(self._library.greenroom_experts, byref(shape), byref(batch))

    def combine(self, call: Combination) -> None:
        self._call(self._library.greenroom_combine, byref(call))

    def begin_layer(self, layer: LayerSpec, step: StepCall, place: int) -> None:
        """Run a decoder layer up to the choice of its experts.

        Args:
            place: the layer's index among those with a router.
        """
        self._call(self._library.greenroom_begin_layer, byref(layer), byref(step), place)

    def finish_layer(self, layer: LayerSpec, step: StepCall, place: int, outputs: int) -> None:
        """Add the experts' results, at the address ``outputs``, and the shared expert's to the hidden states."""
        self._call(self._library.greenroom_finish_layer, byref(layer), byref(step), place, outputs)

    def chosen_experts(
        self, layer: LayerSpec, step: StepCall, place: int, experts: array[int], slots: array[int], *, are_last: bool
    ) -> None:
        """Run some of the experts that a decoder layer has chosen, which has begun.

        Each chosen expert is in one call. The results are kept, and added to the hidden states after the last ones.

        Args:
            place: see ``begin_layer``.
            experts: their places in a row of ``step.slots``, int32.
            slots: the address of each, uint64.
            are_last: whether the layer is finished.
        """
        call, (numbers, count) = self._library.greenroom_chosen_experts, experts.buffer_info()
        addresses, _ = slots.buffer_info()
        self._call(call, byref(layer), byref(step), place, numbers, addresses, count, are_last)

    def norm_input(self, layer: LayerSpec, step: StepCall) -> None:
        """Normalise the hidden states for an external mixer of a layer, into ``step.normed``."""
        self._call(self._library.greenroom_norm_input, byref(layer), byref(step))

    def layers(self, layers: ctypes.Array[LayerSpec], step: StepCall, place: int, first: int, end: int) -> int:
        """Run decoder layers ``first`` to ``end``, with experts at the addresses ``step.slots``, if there are any.

        Args:
            place: the index of the first of them among all layers with a router.

        Returns:
            How many have run. The next one chose an expert without an address, and has only begun; ``step.counts`` has
            the rows of its experts.
        """
        num_run, library = c_int64(), self._library
        arguments = byref(layers[0], first * sizeof(LayerSpec)), end - first, byref(step), place, byref(num_run)
        self._run_beside(library.greenroom_layers, library.greenroom_start_layers, arguments)
        return num_run.value

    def head(self, call: HeadCall) -> None:
        """Run the final norm and the head."""
        library = self._library
        self._run_beside(library.greenroom_head, library.greenroom_start_head, (byref(call),))

    def read_rows(self, matrix: Matrix, rows: int, count: int, target: int) -> bool:
        """Write rows of a matrix in float32 at an address; False if rows of its format can't be read.

        Args:
            rows: the address of so many int32 numbers.

        Raises:
            IndexError: there is no such row.
        """
        call = self._library.greenroom_read_rows
        status = call(self._handle, byref(matrix), rows, count, target)
        if status == 2:  # noqa: PLR2004
            raise IndexError(f"a row is not one of {matrix.outputs}")
        return bool(status == 0)

    def sample(self, call: SamplingCall) -> None:
        self._call(self._library.greenroom_sample, byref(call))

    def start_decodes(self, run: DecodeRun, num_allowed: int, end: Callable[[], None]) -> None:
        """Begin a run of steps on the other threads, for the calling thread.

        Args:
            run: described until ``end_decodes``.
            num_allowed: steps that may run.
            end: calls ``end_decodes``; this thread's next other call of the kernels does so first.
        """
        self._end_run()
        self._library.greenroom_start_decodes(self._handle, byref(run), num_allowed)
        self._running = get_ident(), end

    def allow_decodes(self, num_steps: int) -> bool:
        """Let a run go on to so many steps; return False if it has ended before."""
        return not self._library.greenroom_allow_decodes(self._handle, num_steps)

    def await_decodes(self, num_steps: int) -> None:
        """Help until so many steps have finished."""
        self._check(self._library.greenroom_await_decodes(self._handle, num_steps))

    def end_decodes(self) -> None:
        """End a run before its next layer."""
        self._running = None
        self._check(self._library.greenroom_end_decodes(self._handle))

    def _call(self, call: Any, *arguments: Any) -> None:
        self._end_run()
        self._check(call(self._handle, *arguments))

    def _end_run(self) -> None:
        """End the calling thread's run of steps; another thread's call waits until it ends."""
        if self._running is not None and self._running[0] == get_ident():
            self._running[1]()

    def _run_beside(self, call: Any, start: Any, arguments: tuple[Any, ...]) -> None:
        """Run a call, and the deferred work beside it; without other threads, before it."""
        self._end_run()
        if self.num_threads == 1:
            self.deferred.run()
        if not self.deferred:
            self._check(call(self._handle, *arguments))
            return
        start(self._handle, *arguments)
        try:
            self.deferred.run()
        finally:
            status = self._library.greenroom_join(self._handle)
        self._check(status)

    def _check(self, status: int) -> None:
        if status:
            raise KernelError("the native kernels ran out of memory")
