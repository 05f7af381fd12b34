"""Triton kernels for a device's experts, which read the same bytes in a slot as the native kernels of the CPU.

Triton is imported by the modules of kernels alone, and these only where a layer is on a CUDA device.
"""
