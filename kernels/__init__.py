"""Triton kernels of the attention block; they import torch and triton, nothing of the package.

* ``attention``  forward, tangent and backward on tensors: what others call, and why it is as it is
* ``keys``       logits and their gradients
* ``values``     values and their gradients
* ``edges``      geometry, softmax, sums over neighbours
* ``common``     what keys and values share

Nothing is imported here, so that the package loads where there is no triton.
"""
