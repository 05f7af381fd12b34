"""Accepted requests: the model that answers them, their memory, and their streams from the engine."""
