"""Runs a model's steps through the modules of transformers."""
