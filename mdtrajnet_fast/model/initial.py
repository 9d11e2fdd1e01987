"""What weights are before a training."""

from __future__ import annotations

import torch
from torch import Tensor


def normal(*shape: int, scale: float = 1.0) -> Tensor:
    """Normal random numbers times a scale; on the device "meta", as always, shapes alone.

    (There torch loads its compiler, which takes seconds, for much that it does in Python: to draw
    numbers, to multiply them, to repeat tensors.)
    """
    x = torch.empty(*shape)
    return x if x.is_meta else x.normal_().mul_(scale)
