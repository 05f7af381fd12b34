"""Modules of transformers whose forward is replaced by kernels of a CUDA device, where a trial gives the same."""
