"""Errors of the Triton kernels against the float64 reference, in Triton's interpreter.

Run by test_triton.py in a process of its own, for TRITON_INTERPRET must be set before triton is
imported and must not be set for anybody else. Prints {case: {quantity: relative error}} as JSON;
what is not finite has an error of infinity.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace

os.environ["TRITON_INTERPRET"] = "1"

import torch
from mdtrajnet_fast.kernels import attention
from torch import Tensor
from torch.autograd import forward_ad
from triton_inputs import ODD, OURS, PUBLISHED, SMALL, inputs, single

from mdtrajnet_fast.ops import edge_attention
from mdtrajnet_fast.ops.reference import FoldedWeights

# Numbers of neighbours: none, one, few (two centres a tile), and more than one tile of edges.
FEW = (3, 0, 8, 1, 8, 9, 5)
MANY = (37, 0, 1, 16, 0)
CASES = {
    "small few": (SMALL, FEW, False),
    "small few envelope": (SMALL, FEW, True),
    "odd many envelope": (ODD, MANY, True),
    "odd few": (ODD, (2, 0, 9), False),
    "published": (PUBLISHED, (3, 1, 2, 2), False),
    "ours, many": (OURS, (18, 0), True),
    "first and last alone": (SMALL, (0, 1, 1, 0), False),
}


def flat(folded: FoldedWeights) -> dict[str, Tensor]:
    """Every tensor of the folded weights by name."""
    tensors = {name: getattr(folded, name) for name in folded._fields[2:]}
    for name in ("key_layers", "value_layers"):
        ((tensors[f"{name} weight"], tensors[f"{name} bias"]),) = getattr(folded, name)
    return tensors


def with_leaves(folded: FoldedWeights) -> FoldedWeights:
    """A copy whose tensors require gradients."""

    def leaf(x: Tensor) -> Tensor:
        return x.clone().requires_grad_()

    return folded._replace(
        **{name: leaf(getattr(folded, name)) for name in folded._fields[2:]},
        key_layers=[(leaf(a), leaf(b)) for a, b in folded.key_layers],
        value_layers=[(leaf(a), leaf(b)) for a, b in folded.value_layers],
    )


def error(got: Tensor, exact: Tensor | None) -> float:
    """Relative error in the norm; absolute where the exact value is zero."""
    assert exact is not None
    assert got.dtype == torch.float32 and got.shape == exact.shape
    if not got.isfinite().all():
        return float("inf")
    norm = float(exact.norm())
    return float((got.double() - exact).norm()) / (norm or 1.0)


NAMES = ("scalars", "displacement", "velocity_change")


def errors(sizes: tuple[int, ...], degrees: tuple[int, ...], envelope: bool) -> dict[str, float]:
    """Relative errors of values, tangents and gradients."""
    state, graph, folded, options, draw = inputs(sizes, degrees)
    options["envelope"] = envelope
    edges = graph.row_ptr, graph.neighbor, graph.r, graph.w
    single_args = *single(edges), single(folded)
    found = {}

    with forward_ad.dual_level():
        state_t = tuple(draw(*x.shape) for x in state)
        duals = [forward_ad.make_dual(x, t) for x, t in zip(state, state_t, strict=True)]
        exact = [
            forward_ad.unpack_dual(x) for x in edge_attention(*duals, graph, folded, **options)
        ]
    got = attention.forward(*single(state), *single_args, **options)
    for name, x, y in zip(NAMES, got, exact, strict=True):
        found[name] = error(x, y.primal)
    values, tangents = attention.tangent(*single(state), *single(state_t), *single_args, **options)
    for name, x, t, y in zip(NAMES, values, tangents, exact, strict=True):
        found[f"{name} beside the tangent"] = error(x, y.primal)
        found[f"{name} tangent"] = error(t, y.tangent)

    leaves = [x.clone().requires_grad_() for x in (*state, graph.r, graph.w)]
    weights = with_leaves(folded)
    changed = replace(graph, r=leaves[3], w=leaves[4])
    outputs = edge_attention(*leaves[:3], changed, weights, **options)
    cotangents = [draw(*x.shape) for x in outputs]
    torch.autograd.backward(outputs, cotangents)
    grads = attention.backward(*single(state), *single_args, *single(cotangents), **options)
    for name, leaf in zip((*NAMES, "r", "w"), leaves, strict=True):
        found[f"{name} gradient"] = error(getattr(grads, name), leaf.grad)
    for name, leaf in flat(weights).items():
        found[f"{name} gradient"] = error(flat(grads.folded)[name], leaf.grad)
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    # fills what torch.empty returns with NaN: a number that no kernel has written shows
    torch.use_deterministic_algorithms(True)
    print(json.dumps({name: errors(*case) for name, case in CASES.items()}))
