"""Matrix products in each weight format, by torch.

``greenroom pack`` writes ``block_int8`` and ``block_int4``. Integers of published checkpoints, and of older packs, are
in ``channel_int8``, ``group_int8`` and ``group_int4`` (``repack_int4`` converts to the latter). ``fp8``, ``fp4`` and
``dense`` keep the published tensors.
"""
