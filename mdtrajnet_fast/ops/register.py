"""The native attention block as operations of torch.library, with gradients and time tangents.

`torch.ops.mdtrajnet_fast.edge_attention` and its two companions, `_tangent` (values and tangents of
one pass) and `_backward`, are what autograd, forward-mode differentiation and torch.compile see.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import cpu
from .graph import CSR
from .reference import FoldedWeights

_STATE = "Tensor scalars, Tensor displacement, Tensor velocity_change"
_REST = (
    "Tensor row_ptr, Tensor neighbor, Tensor r, Tensor w, Tensor[] weights, int key_layers, "
    "float radial_cutoff, int distance_centres, int time_channels, bool envelope"
)
_TANGENTS = "Tensor scalars_t, Tensor displacement_t, Tensor velocity_change_t"
_GRADIENTS = "Tensor? scalars_g, Tensor displacement_g, Tensor velocity_change_g"

_library = torch.library.Library("mdtrajnet_fast", "DEF")
_library.define(f"edge_attention({_STATE}, {_REST}) -> (Tensor, Tensor, Tensor)")
_library.define(f"edge_attention_tangent({_STATE}, {_TANGENTS}, {_REST}) -> Tensor[]")
_library.define(f"edge_attention_backward({_STATE}, {_GRADIENTS}, {_REST}) -> Tensor[]")

_OPTIONS = ("radial_cutoff", "distance_centres", "time_channels", "envelope")


def flat(folded: FoldedWeights) -> tuple[list[Tensor], int]:
    """The folded tensors and the number of key layers: what the operations take."""
    return folded.tensors(), len(folded.key_layers)


def _block(weights: Sequence[Tensor], key_layers: int, options: Sequence[Any], gradients: bool):
    return cpu.Block(
        FoldedWeights.from_tensors(weights, key_layers),
        **dict(zip(_OPTIONS, options, strict=True)),
        gradients=gradients,
    )


def _contiguous(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [x.contiguous() for x in tensors]


def _forward(s, x, v, row_ptr, neighbor, r, w, weights, key_layers, *options):
    block = _block(weights, key_layers, options, False)
    out, _ = block.forward(_contiguous((s, x, v)), [], CSR(row_ptr, neighbor, *_contiguous((r, w))))
    return tuple(out)


def _tangent(s, x, v, st, xt, vt, row_ptr, neighbor, r, w, weights, key_layers, *options):
    block = _block(weights, key_layers, options, False)
    graph = CSR(row_ptr, neighbor, *_contiguous((r, w)))
    out, tangents = block.forward(_contiguous((s, x, v)), _contiguous((st, xt, vt)), graph)
    return [*out, *tangents]


def _backward(s, x, v, sg, xg, vg, row_ptr, neighbor, r, w, weights, key_layers, *options):
    block = _block(weights, key_layers, options, True)
    graph = CSR(row_ptr, neighbor, *_contiguous((r, w)))
    gradients = [None if sg is None else sg.contiguous(), *_contiguous((xg, vg))]
    state, edges, of_weights = block.backward(_contiguous((s, x, v)), graph, gradients)
    return [*state, *edges, *of_weights]


for _name, _function in (
    ("edge_attention", _forward),
    ("edge_attention_tangent", _tangent),
    ("edge_attention_backward", _backward),
):
    _library.impl(_name, _function, "CPU")


@torch.library.register_fake("mdtrajnet_fast::edge_attention")
def _(s, x, v, *rest):
    return torch.empty_like(s), torch.empty_like(x), torch.empty_like(v)


@torch.library.register_fake("mdtrajnet_fast::edge_attention_tangent")
def _(s, x, v, st, xt, vt, *rest):
    return [torch.empty_like(y) for y in (s, x, v, st, xt, vt)]


@torch.library.register_fake("mdtrajnet_fast::edge_attention_backward")
def _(s, x, v, sg, xg, vg, row_ptr, neighbor, r, w, weights, *rest):
    return [torch.empty_like(y) for y in (s, x, v, r, w, *weights)]


class _EdgeAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, key_layers, options, row_ptr, neighbor, *tensors):
        s, x, v, r, w, *weights = tensors
        ctx.save_for_backward(row_ptr, neighbor, *tensors)
        ctx.rest = key_layers, options
        ctx.set_materialize_grads(False)  # nobody reads the scalars of the last block
        with torch._C._AutoDispatchBelowAutograd():
            return torch.ops.mdtrajnet_fast.edge_attention(
                s, x, v, row_ptr, neighbor, r, w, weights, key_layers, *options
            )

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *gradients):
        row_ptr, neighbor, s, x, v, r, w, *weights = ctx.saved_tensors
        key_layers, options = ctx.rest
        of_scalars, *gradients = gradients
        gradients = [torch.zeros_like(x) if g is None else g for g in gradients]
        found = torch.ops.mdtrajnet_fast.edge_attention_backward(
            s, x, v, of_scalars, *gradients, row_ptr, neighbor, r, w, weights, key_layers, *options
        )
        return None, None, None, None, *found


def _differentiable(s, x, v, row_ptr, neighbor, r, w, weights, key_layers, *options):
    """Reverse mode by `_EdgeAttention`; forward mode by the tangent operation."""
    state = [forward_ad.unpack_dual(y) for y in (s, x, v)]
    if all(y.tangent is None for y in state):
        return _EdgeAttention.apply(
            key_layers, options, row_ptr, neighbor, s, x, v, r, w, *weights
        )
    inputs = (s, x, v, r, w, *weights)
    if torch.is_grad_enabled() and any(y.requires_grad for y in inputs):
        raise NotImplementedError(
            "the CPU kernels have no gradient of a time tangent (gradients and forward-mode "
            'derivatives of one pass were asked for together); use backend="reference", or train '
            "velocities with a velocity read-out"
        )
    if any(forward_ad.unpack_dual(y).tangent is not None for y in (r, w, *weights)):
        raise NotImplementedError(
            "the CPU kernels carry tangents of scalars, displacement and velocity change only, not "
            'of edges or weights; use backend="reference"'
        )
    values = [y.primal for y in state]
    tangents = [torch.zeros_like(y.primal) if y.tangent is None else y.tangent for y in state]
    with torch._C._AutoDispatchBelowAutograd():
        found = torch.ops.mdtrajnet_fast.edge_attention_tangent(
            *values, *tangents, row_ptr, neighbor, r, w, weights, key_layers, *options
        )
    return tuple(forward_ad.make_dual(a, b) for a, b in zip(found[:3], found[3:], strict=True))


_library.impl("edge_attention", _differentiable, "Autograd")
