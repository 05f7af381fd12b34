"""Loads a server from its settings: the model, the memory plan, the expert store and the engine."""
