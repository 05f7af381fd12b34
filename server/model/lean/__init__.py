"""Runs decoder layers of the usual shape by fused native operations instead of transformers' modules.

``find_lean`` recognises a model by its structure and holds every layer against transformers' own; ``LeanModel`` runs
its steps. What is not recognised goes through the modules.
"""
