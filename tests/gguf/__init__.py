"""Tiny models in the GGUF format, written by llama.cpp's converter, and what they were made from."""
