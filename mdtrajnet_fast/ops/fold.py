"""Folding a block's weights: :func:`.reference.fold`, natively on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _C
from . import reference
from .reference import BlockWeights, FoldedWeights


def fold(weights: BlockWeights, native: bool = False) -> FoldedWeights:
    """Work normalisation, query, bilinear form and output map into a block's path weights.

    native: by the kernel for CPUs, with gradients; else, and for compilers, in plain torch. Raises
    ValueError where the kernel cannot read the weights.
    """
    if not native or torch.compiler.is_compiling():
        return reference.fold(weights)
    folded = _Fold.apply(*weights[2:])
    return FoldedWeights(weights.key_layers, weights.value_layers, *folded)


def _native(
    weights: Sequence[Tensor], folded: Sequence[Tensor], gradient: Sequence[Tensor]
) -> None:
    w = BlockWeights([], [], *weights)
    s, h, q0 = w.query_scalar.shape
    channels = (w.key_scalar, w.value_scalar, w.key_vector, w.value_vector)
    sizes = [len(w.key_scalar), len(w.value_scalar), *(x.shape[3] for x in channels)]
    sizes += [q0, w.query_vector.shape[2]]
    pointers = ([x.data_ptr() for x in some] for some in (weights, folded, gradient))
    _C.fold(w.key_scalar.dtype == torch.float64, s, h, sizes, *pointers)


class _Fold(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *weights: Tensor) -> tuple[Tensor, ...]:
        like = weights[0]
        for x in weights:
            if (
                not x.is_cpu
                or x.dtype != like.dtype
                or x.dtype not in (torch.float32, torch.float64)
            ):
                raise ValueError(
                    "the CPU kernels take weights in float32 or float64 on the CPU, but got "
                    f"{x.dtype} on {x.device}; convert the model"
                )
        weights = tuple(x.contiguous() for x in weights)
        n, paths, h, c0 = like.shape
        s, m, v0 = paths - 2, len(weights[2]), weights[2].shape[3]
        folded = (
            like.new_empty(s, c0 * h),
            like.new_empty(s, n, (c0 + 2) * h),
            like.new_empty(n, (2 * c0 + 4) * h),
            like.new_empty(s, m, 2 * h),
            like.new_empty(m, 6 * h),
            like.new_empty(h, m, s * v0),
            like.new_empty(h, 2 * m, v0),
            like.new_empty(h * v0, s),
        )
        ctx.save_for_backward(*weights)
        _native(weights, folded, [])
        return folded

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        weights = ctx.saved_tensors
        of_weights = tuple(torch.empty_like(x) for x in weights)
        _native(weights, [x.contiguous() for x in gradients], of_weights)
        return of_weights
