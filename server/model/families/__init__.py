"""Declarations of families of models: one file a family, by the ``model_type`` of the config of its text part."""
