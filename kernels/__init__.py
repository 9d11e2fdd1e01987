"""Triton kernels, imported as ``mdtrajnet_fast.kernels``; they import nothing of the package."""
