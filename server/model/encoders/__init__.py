"""Encoders: models that read whole sequences in both directions and write no text."""
