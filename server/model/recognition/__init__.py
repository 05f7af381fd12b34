"""Finds what a model is, by trials of its twin."""
