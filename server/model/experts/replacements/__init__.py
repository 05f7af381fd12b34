"""Replacements for modules whose experts do not call the hooks of transformers' experts interface.

A model that is being built gets the replacements in the place of its own modules. A replacement is called as the
original is, and its other parameters have the same names. Where the experts' parameters have other names or shapes than
a checkpoint's tensors, the replacement defines the conversions, as transformers does for models that it renames. One
kind of attention, whose queries are made by experts, has a replacement too.
"""

from server.model.experts.replacements.table import conversions, replace_experts

__all__ = ["conversions", "replace_experts"]
