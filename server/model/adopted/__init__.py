"""Experts that transformers has no interface to, put behind the seam.

A model that is being built gets modules of ours in their places, each of which is called as the original is and names
its other parameters alike. Where the experts' own have other names or shapes than a checkpoint's tensors, the module
says how these come about from those, as transformers itself does of the models it renames. One kind of attention, whose
queries are made by experts, gets a module of ours too.
"""

from .places import adopt_experts, conversions

__all__ = ["adopt_experts", "conversions"]
