"""The CPU kernels against the float64 reference: values, time tangents, gradients, limits."""

import dataclasses

import ase
import cases
import numpy as np
import pytest
import torch
from kernel_cases import SIZES, SYSTEMS, close, double, folded_of, like, model_of, options_of
from torch.autograd import forward_ad

from mdtrajnet_fast.ops import edge_attention
from mdtrajnet_fast.ops.reference import FoldedWeights

NAMES = ["scalars", "displacement", "velocity_change"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("envelope", [False, True])
@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("sizes", SIZES)
def test_values_tangents_and_gradients(instruction_set, sizes, system, envelope, dtype):
    model = model_of(SIZES[sizes], dtype, envelope=envelope)
    *state, graph = cases.block_inputs(model, SYSTEMS[system]())
    folded, options = folded_of(model), options_of(model)
    tangents = [0.1 * like(x, 5 + k) for k, x in enumerate(state)]
    upstream = [like(x, 9 + k) for k, x in enumerate(state)]

    # the reference, in double precision, on the same numbers
    exact = [x.double().requires_grad_() for x in (*state, graph.r, graph.w)]
    weights = [x.double().requires_grad_() for x in folded.tensors()]
    wide = FoldedWeights.from_tensors(weights, len(folded.key_layers))
    exact_graph = dataclasses.replace(graph, r=exact[3], w=exact[4])
    out = edge_attention(*exact[:3], exact_graph, wide, **options, backend="reference")
    loss = sum((x * y.double()).sum() for x, y in zip(out, upstream, strict=True))
    gradients = torch.autograd.grad(loss, [*exact, *weights], materialize_grads=True)
    with torch.no_grad(), forward_ad.dual_level():
        duals = [
            forward_ad.make_dual(x.detach(), y.double())
            for x, y in zip(exact[:3], tangents, strict=True)
        ]
        plain = FoldedWeights.from_tensors([x.detach() for x in weights], len(folded.key_layers))
        moved = edge_attention(*duals, double(graph), plain, **options, backend="reference")
        changes = [forward_ad.unpack_dual(x).tangent for x in moved]

    # the kernels
    leaves = [x.clone().requires_grad_() for x in (*state, graph.r, graph.w)]
    own_weights = [x.clone().requires_grad_() for x in folded.tensors()]
    own_graph = dataclasses.replace(graph, r=leaves[3], w=leaves[4])
    own = FoldedWeights.from_tensors(own_weights, len(folded.key_layers))
    found = edge_attention(*leaves[:3], own_graph, own, **options)
    close([x.detach() for x in found], [x.detach() for x in out], dtype)
    loss = sum((x * y).sum() for x, y in zip(found, upstream, strict=True))
    close(torch.autograd.grad(loss, [*leaves, *own_weights]), gradients, dtype)
    with torch.no_grad(), forward_ad.dual_level():
        duals = [forward_ad.make_dual(x, y) for x, y in zip(state, tangents, strict=True)]
        moved = [
            forward_ad.unpack_dual(x) for x in edge_attention(*duals, graph, folded, **options)
        ]
        close([x.primal for x in moved], [x.detach() for x in out], dtype)
        close([x.tangent for x in moved], changes, dtype)


def test_gradcheck():
    model = model_of(cases.SMALL)
    *state, graph = cases.block_inputs(model, cases.hot("H2O"))
    folded, options = folded_of(model), options_of(model)
    tensors = folded.tensors()

    def function(s, x, v, r, w, *weights):
        changed = FoldedWeights.from_tensors(weights, len(folded.key_layers))
        moved = dataclasses.replace(graph, r=r, w=w)
        return edge_attention(s, x, v, moved, changed, **options)

    leaves = [x.clone().requires_grad_() for x in (*state, graph.r, graph.w, *tensors)]
    assert torch.autograd.gradcheck(function, leaves, fast_mode=True)


def test_opcheck():
    model = model_of(cases.SMALL, torch.float32)
    *state, graph = cases.block_inputs(model, cases.hot("CH3CH2OH"))
    folded = folded_of(model)
    rest = (*graph.csr, folded.tensors(), len(folded.key_layers), *options_of(model).values())
    ops, tangents = torch.ops.mdtrajnet_fast, [like(x, k) for k, x in enumerate(state)]
    for gradients in (False, True):
        leaves = [x.clone().requires_grad_(gradients) for x in state]
        torch.library.opcheck(ops.edge_attention.default, (*leaves, *rest))
    torch.library.opcheck(ops.edge_attention_tangent.default, (*state, *tangents, *rest))
    torch.library.opcheck(ops.edge_attention_backward.default, (*state, *tangents, *rest))


@pytest.mark.parametrize("residual", ["input", "running"])
def test_a_model_is_its_blocks(instruction_set, residual):
    """The stack in one native call, for several times at once, against the reference."""
    model = model_of(cases.SMALL, residual=residual)
    atoms, times = cases.mixture(), [1.0, 4.0, 9.5]
    found = model.predict(atoms, times)
    one_by_one = [model.predict(atoms, t) for t in times]
    model.backend = "reference"
    for k, (x, y) in enumerate(zip(found, model.predict(atoms, times), strict=True)):
        for a, b in zip(x, y, strict=True):  # positions, velocities
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)
        for a, frames in enumerate(x):
            for frame, single in zip(frames, one_by_one, strict=True):
                np.testing.assert_array_equal(frame, single[k][a][0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_threads_do_not_change_a_bit_of_the_forward_pass(dtype):
    model = model_of(SIZES["published"], dtype)
    *state, graph = cases.block_inputs(model, cases.diamond((4, 4, 4)))
    folded, options = folded_of(model), options_of(model)
    t = torch.full((graph.atoms,), 5.0, dtype=dtype)

    def run():
        values = edge_attention(*state, graph, folded, **options)
        return [*values, *model.motion(graph, t)]

    one = run()
    torch.set_num_threads(2)
    try:
        two = run()
    finally:
        torch.set_num_threads(1)
    for x, y in zip(one, two, strict=True):
        assert torch.equal(x, y)


def test_gradients_are_reproducible():
    model = model_of(SIZES["published"], torch.float32).requires_grad_(True)
    *_, graph = cases.block_inputs(model, cases.diamond((3, 3, 3)))
    t = torch.full((graph.atoms,), 5.0)

    def run():
        return torch.autograd.grad(model(graph, t).displacement.square().sum(), inputs)

    inputs = list(model.parameters())
    one = run()
    torch.set_num_threads(2)
    try:
        two, again = run(), run()
    finally:
        torch.set_num_threads(1)
    for x, y, z in zip(one, two, again, strict=True):
        assert torch.equal(y, z)
        assert (x - y).norm() <= 1e-5 * x.norm()


def test_compiled():
    model = model_of(cases.SMALL, torch.float64)
    *_, graph = cases.block_inputs(model, cases.hot("CH3CH2OH"))
    t = torch.full((graph.atoms,), 5.0, dtype=torch.float64)
    compiled = torch.compile(lambda t: model(graph, t).displacement, backend="aot_eager")
    torch.testing.assert_close(compiled(t), model(graph, t).displacement, rtol=0, atol=1e-12)


def test_no_neighbours_no_increment(instruction_set):
    model = model_of(SIZES["published"])
    atoms = ase.Atoms("CHO", positions=[[0, 0, 0], [0, 0, 30], [0, 1.0, 30]])
    *state, graph = cases.block_inputs(model, atoms)
    for increment in edge_attention(*state, graph, folded_of(model), **options_of(model)):
        assert (increment[0] == 0).all()
        assert (increment[1:] != 0).any()


def test_refusals(monkeypatch):
    model = model_of(cases.SMALL)
    *state, graph = cases.block_inputs(model, cases.hot("H2O"))
    folded, options = folded_of(model), options_of(model)
    with pytest.raises(ValueError, match="backend must be one of cpu, cuda, .* got 'gpu'"):
        edge_attention(*state, graph, folded, **options, backend="gpu")
    with pytest.raises(ValueError, match='"cpu" needs tensors on the CPU, but got .* on meta'):
        edge_attention(*(x.to("meta") for x in state), graph, folded, **options, backend="cpu")
    with pytest.raises(ValueError, match='"triton" needs float32 tensors on a CUDA device'):
        edge_attention(*state, graph, folded, **options, backend="triton")
    with pytest.raises(ValueError, match="state has 4 rows, but must have one for each .* 3 atoms"):
        longer = [torch.cat([x, x[:1]]) for x in state]
        edge_attention(*longer, graph, folded, **options)
    with pytest.raises(ValueError, match="take torch.float64 tensors on the CPU, but got .*32"):
        edge_attention(*(x.float() for x in state), graph, folded, **options)
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(x, x) for x in state]
        weights = [x.clone().requires_grad_() for x in folded.tensors()]
        trained = FoldedWeights.from_tensors(weights, len(folded.key_layers))
        with pytest.raises(NotImplementedError, match='time tangent .* backend="reference"'):
            edge_attention(*duals, graph, trained, **options)
        weights = [forward_ad.make_dual(x, x) for x in folded.tensors()]
        trained = FoldedWeights.from_tensors(weights, len(folded.key_layers))
        with pytest.raises(NotImplementedError, match="not of edges or weights"):
            edge_attention(*duals, graph, trained, **options)
    deep = model_of(cases.SMALL, key_weight_hidden_neurons=(4,) * 9)
    with pytest.raises(ValueError, match="9 hidden layers, but the CPU kernels take 1 to 8"):
        edge_attention(*state, graph, folded_of(deep), **options)
    monkeypatch.setenv("MDTRAJNET_INSTRUCTION_SET", "sse9")
    with pytest.raises(ValueError, match='MDTRAJNET_INSTRUCTION_SET is "sse9", but must name one'):
        edge_attention(*state, graph, folded, **options)
