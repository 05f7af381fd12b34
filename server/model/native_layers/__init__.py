"""Runs decoder layers of the usual structure by fused native operations instead of transformers' modules.

``find_native_layers`` recognises a model by its structure and compares every layer with transformers' own.
``NativeModel`` runs its steps. Models that are not recognised run through transformers' modules.
"""
