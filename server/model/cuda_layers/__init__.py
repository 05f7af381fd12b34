"""Runs parts of declared layers by Triton's kernels on a CUDA device.

``compile_for_cuda`` finds what the kernels run of each layer by the model's declaration, which was checked on its twin.
transformers' layers call these in the place of their modules.
"""
