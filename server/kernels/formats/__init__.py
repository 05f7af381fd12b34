"""A folder for each weight format: its layout in a slot, products by torch, and what native kernels and Triton have.

``greenroom pack`` writes ``block_int8`` and ``block_int4``. Integers of published checkpoints, and of older packs, are
in ``channel_int8``, ``group_int8`` and ``group_int4`` (``repack_int4`` converts to the latter). ``fp8``, ``fp4`` and
``dense`` keep the published tensors.
"""
