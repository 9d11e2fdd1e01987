"""The place of Triton kernels (``mdtrajnet_fast.kernels``), which import nothing of the package.

There are none yet: the attention runs in plain torch, see ``mdtrajnet_fast.ops.reference``.
"""
