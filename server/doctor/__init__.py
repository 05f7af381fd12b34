"""Checks of `greenroom doctor`: this machine, its settings, and a model that is to be served on it."""
