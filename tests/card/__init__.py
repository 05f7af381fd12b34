"""A CUDA device made of the CPU, for the tests that need one: it shows what is wrong, not how fast it is.

``install`` (``runtime.py``) gives a CPU build of torch devices ``cuda:N``. Results are those of the CPU. What a card
refuses is refused (operands on two devices, device memory read by the host, operations that it lacks), copies on
streams of their own are late, accesses that no event orders are races, and launches and synchronisations are counted by
place. Triton's interpreter runs kernels (``triton_kernels.py``), and graphs are recorded (``graphs.py``). There is no
timing.
"""

import os

os.environ.setdefault("TRITON_INTERPRET", "1")  # Triton reads it when it is imported, as torch does by itself
