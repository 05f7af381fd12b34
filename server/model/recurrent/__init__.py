"""Recurrent and convolution layers, and their states."""
