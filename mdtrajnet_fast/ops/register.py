"""The attention block's kernels as operations of torch.library, with gradients and time tangents.

CPU tensors go to the native kernels (csrc/cpu), CUDA tensors to the Triton kernels (kernels/).
`torch.ops.mdtrajnet_fast.edge_attention` and its two companions, `_tangent` (values and tangents of
one pass) and `_backward`, are what autograd, forward-mode differentiation and torch.compile see.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

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


class _Arguments(NamedTuple):
    state: tuple[Tensor, ...]  # and what goes with it: tangents or gradients
    graph: CSR
    folded: FoldedWeights
    options: dict[str, Any]

    @classmethod
    def parse(cls, arguments: Sequence[Any], state: int) -> _Arguments:
        """The arguments of an operation that has so many tensors before the graph."""
        row_ptr, neighbor, r, w, weights, key_layers, *options = arguments[state:]
        return cls(
            tuple(arguments[:state]),
            CSR(row_ptr, neighbor, r, w),
            FoldedWeights.from_tensors(weights, key_layers),
            dict(zip(_OPTIONS, options, strict=True)),
        )


def _forward_cpu(*arguments: Any) -> tuple[Tensor, ...]:
    state, graph, folded, options = _Arguments.parse(arguments, 3)
    out, _ = cpu.Block(folded, **options).forward(state, [], graph)
    return tuple(out)


def _tangent_cpu(*arguments: Any) -> list[Tensor]:
    state, graph, folded, options = _Arguments.parse(arguments, 6)
    out, tangents = cpu.Block(folded, **options).forward(state[:3], state[3:], graph)
    return [*out, *tangents]


def _backward_cpu(*arguments: Any) -> list[Tensor]:
    state, graph, folded, options = _Arguments.parse(arguments, 6)
    block = cpu.Block(folded, **options, gradients=True)
    of_state, of_edges, of_weights = block.backward(state[:3], graph, state[3:])
    return [*of_state, *of_edges, *of_weights]


def _forward_cuda(*arguments: Any) -> tuple[Tensor, ...]:
    from ..kernels import attention  # imports triton: only where it is needed

    state, graph, folded, options = _Arguments.parse(arguments, 3)
    return attention.forward(*state, *graph, folded, **options)


def _tangent_cuda(*arguments: Any) -> list[Tensor]:
    from ..kernels import attention

    state, graph, folded, options = _Arguments.parse(arguments, 6)
    out, tangents = attention.tangent(*state, *graph, folded, **options)
    return [*out, *tangents]


def _backward_cuda(*arguments: Any) -> list[Tensor]:
    from ..kernels import attention

    (s, x, v, of_s, of_x, of_v), graph, folded, options = _Arguments.parse(arguments, 6)
    of_s = torch.zeros_like(s) if of_s is None else of_s
    found = attention.backward(s, x, v, *graph, folded, of_s, of_x, of_v, **options)
    return [*found[:5], *found.folded.tensors()]


for _key, _functions in (
    ("CPU", (_forward_cpu, _tangent_cpu, _backward_cpu)),
    ("CUDA", (_forward_cuda, _tangent_cuda, _backward_cuda)),
):
    for _name, _function in zip(("", "_tangent", "_backward"), _functions, strict=True):
        _library.impl(f"edge_attention{_name}", _function, _key)


@torch.library.register_fake("mdtrajnet_fast::edge_attention")
def _fake_forward(*arguments: Any) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(x.shape) for x in arguments[:3])


@torch.library.register_fake("mdtrajnet_fast::edge_attention_tangent")
def _fake_tangent(*arguments: Any) -> list[Tensor]:
    return [x.new_empty(x.shape) for x in arguments[:6]]


@torch.library.register_fake("mdtrajnet_fast::edge_attention_backward")
def _fake_backward(*arguments: Any) -> list[Tensor]:
    _, _, r, w, weights = arguments[6:11]
    return [x.new_empty(x.shape) for x in (*arguments[:3], r, w, *weights)]


class _EdgeAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        key_layers: int,
        options: tuple[Any, ...],
        row_ptr: Tensor,
        neighbor: Tensor,
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
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
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        row_ptr, neighbor, s, x, v, r, w, *weights = ctx.saved_tensors
        key_layers, options = ctx.rest
        of_scalars, *others = gradients
        of_rest = [torch.zeros_like(x) if g is None else g for g in others]
        found = torch.ops.mdtrajnet_fast.edge_attention_backward(
            s, x, v, of_scalars, *of_rest, row_ptr, neighbor, r, w, weights, key_layers, *options
        )
        return None, None, None, None, *found


def _differentiable(*arguments: Any) -> tuple[Tensor, ...]:
    """Reverse mode by `_EdgeAttention`; forward mode by the tangent operation."""
    s, x, v, row_ptr, neighbor, r, w, weights, key_layers, *options = arguments
    state = [forward_ad.unpack_dual(y) for y in (s, x, v)]
    if all(y.tangent is None for y in state):
        return _EdgeAttention.apply(key_layers, options, row_ptr, neighbor, s, x, v, r, w, *weights)
    inputs = (s, x, v, r, w, *weights)
    if torch.is_grad_enabled() and any(y.requires_grad for y in inputs):
        raise NotImplementedError(
            "the kernels have no gradient of a time tangent (gradients and forward-mode "
            'derivatives of one pass were asked for together); use backend="reference", or train '
            "velocities with a velocity read-out"
        )
    if any(forward_ad.unpack_dual(y).tangent is not None for y in (r, w, *weights)):
        raise NotImplementedError(
            "the kernels carry tangents of scalars, displacement and velocity change only, not "
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
