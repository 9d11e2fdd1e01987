"""Errors of the Triton kernels against the float64 reference, in Triton's interpreter.

Run by test_triton.py in a process of its own, for TRITON_INTERPRET must be set before triton is
imported and must not be set for anybody else. Prints {case: {quantity: relative error}} as JSON;
what is not finite has an error of infinity.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from itertools import product

os.environ["TRITON_INTERPRET"] = "1"

import ase
import cases
import torch
from kernel_cases import SIZES, SYSTEMS, folded_of, like, model_of, options_of
from mdtrajnet_fast.kernels import attention
from no_waits import NoWaits
from torch import Tensor
from torch.autograd import forward_ad
from triton_inputs import BUNDLED, CUTOFF, ODD, SMALL, inputs, single

from mdtrajnet_fast.ops import edge_attention
from mdtrajnet_fast.ops.reference import FoldedWeights

# The matrix of the other kernels, with one hidden layer for each radial network, and with the same
# kinds of systems but fewer atoms: an interpreted program takes milliseconds a tile.
MATRIX = {
    "small": SIZES["small"] | {"key_weight_hidden_neurons": (7,)},
    "published": SIZES["published"],
    "three heads": SIZES["three heads"] | {"value_weight_hidden_neurons": (40,)},
}
SMALL_SYSTEMS = {
    "mixture": lambda: [cases.hot("H2O"), ase.Atoms("O"), cases.hot("H2")],
    "crowd": lambda: ase.Atoms("NO", [[0, 0, 0], [1.1, 1.2, 0.7]], cell=[2.4, 2.6, 2.7], pbc=True),
    "alone": SYSTEMS["alone"],
}
assert set(SMALL_SYSTEMS) == set(SYSTEMS)
# With and without an envelope where sizes are small: it concerns the softmax and the geometry, and
# not the products that take large sizes their time. Of these, every system has one or the other,
# and the largest one system whose atoms have neighbours.
CASES = [
    (sizes, system, envelope)
    for k, (sizes, system) in enumerate(product(MATRIX, SMALL_SYSTEMS))
    for envelope in ((False, True) if sizes == "small" else (k % 2 == 0,))
    if (sizes, system) != ("published", "mixture")
]
# Numbers of neighbours: none, one, few (two centres a tile), and more than one tile of edges.
FEW = (3, 0, 8, 1, 8, 9, 5)
DEGREES = {
    "few envelope": (SMALL, FEW, True),
    "odd few": (ODD, (2, 0, 9), False),
    "first and last alone": (SMALL, (0, 1, 1, 0), False),
    **{name: (sizes, (2, 0, 9), True) for name, sizes in BUNDLED.items()},
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


def of_degrees(sizes: tuple[int, ...], degrees: tuple[int, ...], envelope: bool, **distances):
    """Inputs of `errors` on a random graph."""
    state, graph, folded, options, draw = inputs(sizes, degrees, **distances)
    return state, graph, folded, options | {"envelope": envelope}, draw


def of_matrix(sizes: str, system: str, envelope: bool):
    """Inputs of `errors` for a model and a system, in float64 and exact in float32."""
    model = model_of(MATRIX[sizes], torch.float32, envelope=envelope)
    *state, graph = cases.block_inputs(model, SMALL_SYSTEMS[system]())
    state, folded = ([x.double() for x in y] for y in (state, folded_of(model).tensors()))
    graph = replace(graph, r=graph.r.double(), w=graph.w.double())
    seeds = iter(range(5, 99))

    def draw(*shape: int) -> Tensor:
        return 0.1 * like(torch.empty(shape), next(seeds)).double()

    return state, graph, FoldedWeights.from_tensors(folded, 1), options_of(model), draw


def errors(state, graph, folded, options, draw) -> dict[str, float]:
    """Relative errors of values, tangents and gradients."""
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


def watched() -> None:
    """Nothing is read back and nothing comes from the host, in sizes whose columns are padded.

    On the second call: the first may prepare what is remembered.
    """
    state, graph, folded, options, _ = single(inputs(ODD, (1, 1)))
    edges = graph.row_ptr, graph.neighbor, *single((graph.r, graph.w))

    def run() -> None:
        attention.forward(*state, *edges, folded, **options)
        attention.tangent(*state, *state, *edges, folded, **options)
        attention.backward(*state, *edges, folded, *state, **options)

    run()
    with NoWaits():
        run()


if __name__ == "__main__":
    torch.set_num_threads(1)
    # fills what torch.empty returns with NaN: a number that no kernel has written shows
    torch.use_deterministic_algorithms(True)
    watched()
    found = {name: errors(*of_degrees(*case)) for name, case in DEGREES.items()}
    # neighbours at the cutoff, most of them the only one of their centre: the envelope rounds there
    near = {"nearest": CUTOFF * (1 - 2e-3), "farthest": CUTOFF * (1 - 1e-4)}
    (s, x, v), *rest = of_degrees(SMALL, (*[1] * 8, 2), True, **near)
    found["at the cutoff"] = errors((s, 0 * x, v), *rest)
    for case in CASES:
        found[", ".join(map(str, case))] = errors(*of_matrix(*case))
    print(json.dumps(found))
