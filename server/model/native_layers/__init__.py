"""Runs decoder layers of the usual structure by fused native operations instead of transformers' modules.

``find_program`` recognises a model on its twin, a small random model made from the config, and compares each layer
there with its module. ``NativeModel`` runs its steps. Models that are not recognised run through transformers' modules.
"""
