"""Names of checkpoint files. Torch-free, so that commands refuse a wrong folder before they import torch."""

MISTRAL_WEIGHTS = "consolidated"  # prefix of the names of weights in Mistral's own format, often a second copy
