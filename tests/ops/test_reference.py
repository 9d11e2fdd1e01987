"""The factorised attention block against the unfactorised one, its gradients and its limits."""

import math

import ase
import cases
import numpy as np
import pytest
import torch

from mdtrajnet_fast.model.config import irreps_channels
from mdtrajnet_fast.ops import (
    cutoff_envelope,
    edge_attention,
    fold,
    gaussian_basis,
    reference,
)
from mdtrajnet_fast.system import System


def direct_block(scalars, dx, dv, graph, block, config):
    """One block, edge by edge, as the tensor products are written: the oracle."""
    s, h = config.scalars, config.num_heads
    (k0, k1), (v0, v1) = irreps_channels(config.irreps_key), irreps_channels(config.irreps_value)
    p0, p1 = 1 / math.sqrt(s + 2), math.sqrt(3 / (s + 4)) / math.sqrt(3)
    kappa = math.sqrt(3) / math.sqrt(30)
    q0, q1 = irreps_channels(config.irreps_query)

    def product(layers, scalar, vector, d, u, w, s_i, tau):
        x = torch.cat([gaussian_basis(d, config.radial_cutoff, config.d_embed_dim), tau])
        for layer in layers:
            x = torch.nn.functional.gelu(layer(x))
        x = torch.cat([x, x.new_ones(1)])
        w0 = torch.einsum("n,nphc->phc", x, scalar)
        w1 = torch.einsum("n,nphc->phc", x, vector)
        wu = w @ u
        zero = p0 * torch.einsum("u,uhc->hc", s_i, w0[:s])
        zero = zero - p0 / (2 * math.sqrt(3)) * (d * w0[s] + wu * w0[s + 1])
        a = p1 * torch.einsum("u,uhc->hc", s_i, w1[:s])
        a = a + d * p1 * (-w1[s] / 2 - kappa * w1[s + 2])
        b = p1 * (-w1[s + 1] / 2 + kappa / 2 * w1[s + 3])
        g = -1.5 * p1 * kappa * w1[s + 3]
        one = a[..., None] * u + b[..., None] * w + g[..., None] * wu * u
        return zero, one

    out = torch.zeros(graph.atoms, s), torch.zeros(graph.atoms, 3), torch.zeros(graph.atoms, 3)
    out = tuple(x.to(scalars) for x in out)
    for i in range(graph.atoms):
        edges = range(int(graph.row_ptr[i]), int(graph.row_ptr[i + 1]))
        if not edges:
            continue
        logits, zeros, ones = [], [], []
        for e in edges:
            j = int(graph.neighbor[e])
            r, w = graph.r[e] + dx[j] - dx[i], graph.w[e] + dv[j] - dv[i]
            d = r.norm()
            s_i, tau = scalars[i], scalars[i, -config.t_embed_dim :]
            args = (d, r / d, w, s_i, tau)
            key = product(block.key_layers, block.key_scalar, block.key_vector, *args)
            value = product(block.value_layers, block.value_scalar, block.value_vector, *args)
            query0 = torch.einsum("s,shq->hq", scalars[j], block.query_scalar) / math.sqrt(s)
            both = torch.stack([r / 2, w / 2])
            query1 = torch.einsum("zx,zhq->hqx", both, block.query_vector) / math.sqrt(2)
            dot = torch.einsum("hq,qc,hc->h", query0, block.bilinear_scalar, key[0])
            dot = dot + torch.einsum(
                "hqx,qc,hcx->h", query1, block.bilinear_vector, key[1]
            ) / math.sqrt(3)
            dot = dot / math.sqrt(q0 * k0 + q1 * k1)
            logits.append(dot / math.sqrt(k0 + 3 * k1))
            zeros.append(value[0])
            ones.append(value[1])
        a = torch.stack(logits).softmax(0)
        zero = torch.einsum("eh,ehc->hc", a, torch.stack(zeros))
        one = torch.einsum("eh,ehcx->hcx", a, torch.stack(ones))
        out[0][i] = torch.einsum("hc,hcs->s", zero, block.out_scalar) / math.sqrt(h * v0)
        vectors = torch.einsum("hcx,hcz->zx", one, block.out_vector) / math.sqrt(h * v1)
        out[1][i], out[2][i] = vectors
    return out


def attention(model, scalars, dx, dv, graph, weights=None, **options):
    config = model.config
    return edge_attention(
        scalars,
        dx,
        dv,
        graph,
        fold(weights or model.members[0].blocks[0].weights()),
        radial_cutoff=config.radial_cutoff,
        distance_centres=config.d_embed_dim,
        time_channels=config.t_embed_dim,
        **{"backend": "reference"} | options,
    )


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("atoms", [cases.hot("CH3CH2OH"), cases.mixture()], ids=["one", "mixture"])
def test_factorised_equals_direct(atoms, seed):
    model = cases.model(seed)
    inputs = cases.block_inputs(model, atoms, seed)
    expected = direct_block(*inputs, model.members[0].blocks[0], model.config)
    for x, y in zip(attention(model, *inputs), expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-11, atol=1e-11)


def test_float32_is_float64_to_rounding():
    model = cases.model()
    inputs = cases.block_inputs(model, cases.mixture())
    exact = attention(model, *inputs)
    single = model.float()
    inputs32 = *(x.float() for x in inputs[:3]), single.graph(System.from_atoms(cases.mixture()))
    for x, y in zip(attention(single, *inputs32), exact, strict=True):
        assert (x.double() - y).norm() < 1e-5 * y.norm()


def test_slices_do_not_change_the_result(monkeypatch):
    model = cases.model()
    inputs = cases.block_inputs(model, cases.mixture())
    whole = attention(model, *inputs)
    monkeypatch.setattr(reference, "_SLICE", 1)
    for x, y in zip(attention(model, *inputs), whole, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-12)


def test_no_neighbours_no_increment():
    model = cases.model()
    atoms = ase.Atoms("CHO", positions=[[0, 0, 0], [0, 0, 30], [0, 1.0, 30]])
    scalars, dx, dv, graph = cases.block_inputs(model, atoms)
    for increment in attention(model, scalars, dx, dv, graph):
        assert (increment[0] == 0).all()
        assert (increment[1:] != 0).any()
    alone = cases.block_inputs(model, ase.Atoms("O"))
    for increment in attention(model, *alone):
        assert (increment == 0).all()


@pytest.mark.parametrize("envelope", [False, True])
def test_gradients(envelope):
    model = cases.model(irreps_key="2x0e + 1x1o", key_weight_hidden_neurons=(4,))
    scalars, dx, dv, graph = cases.block_inputs(model, cases.hot("H2O"))
    weights = model.members[0].blocks[0].weights()
    leaves = [scalars, dx, dv, weights.key_scalar, weights.value_vector, weights.out_vector]
    leaves += [weights.key_layers[0][0], weights.query_vector]

    def function(s, x, v, key, value, out, layer, query):
        changed = weights._replace(
            key_scalar=key,
            value_vector=value,
            out_vector=out,
            query_vector=query,
            key_layers=[(layer, weights.key_layers[0][1])],
        )
        return attention(model, s, x, v, graph, changed, envelope=envelope)

    leaves = [x.detach().clone().requires_grad_() for x in leaves]
    assert torch.autograd.gradcheck(function, leaves, check_forward_ad=True, fast_mode=True)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_envelope_is_continuous_at_the_cutoff(backend):
    """Nothing jumps where an atom crosses the cutoff, even the only neighbour."""

    def prediction(distance, envelope):
        model = cases.model(envelope=envelope)
        atoms = ase.Atoms("CO", positions=[[0, 0, 0], [0, 0, distance]])
        atoms.set_momenta([[1.0, 0, 0.5], [0, 1.0, 0]])
        model.backend = backend
        return model.predict(atoms, [5.0])[0][0] - atoms.positions

    near, far = 4.0 - 1e-5, 4.0 + 1e-5
    assert abs(prediction(near, True) - prediction(far, True)).max() < 1e-9
    assert abs(prediction(near, False) - prediction(far, False)).max() > 1e-3


def test_cutoff_envelope():
    d = torch.tensor([0.0, 2.0, 4.0, 5.0], dtype=torch.float64, requires_grad=True)
    f = cutoff_envelope(d, 4.0)
    np.testing.assert_allclose(f.detach(), [1, 0.5, 0, 0], atol=1e-14)
    (slope,) = torch.autograd.grad(f.sum(), d)
    np.testing.assert_allclose(slope[[0, 2, 3]], 0, atol=1e-14)


def test_gaussian_basis():
    x = torch.tensor([0.0, 1.0, 2.5], dtype=torch.float64)
    expected = [[math.exp(-(((a - m) / 2) ** 2)) / 1.12 for m in (0, 2, 4)] for a in x.tolist()]
    np.testing.assert_allclose(gaussian_basis(x, 4.0, 3), expected, rtol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_native_folding(dtype):
    """Values and gradients of the weights, also of what does not lie in rows."""
    model = cases.model(dtype=dtype)
    block = model.members[0].blocks[0].requires_grad_(True)
    with torch.no_grad():
        turned = block.key_vector.transpose(0, 1).contiguous().transpose(0, 1)
        block.key_vector = torch.nn.Parameter(turned)
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {}
    folded, gradients = [], []
    for native in (False, True):
        folded.append(fold(block.weights(), native).tensors()[4 + 2 :])
        block.zero_grad()
        torch.manual_seed(1)
        total = sum((torch.randn(x.shape, dtype=dtype) * x).sum() for x in folded[-1])
        total.backward()
        gradients.append([x.grad for x in block.parameters() if x.grad is not None])
    assert len(folded[0]) == 8 and len(gradients[0]) == 10
    for a, b in zip(folded[0] + gradients[0], folded[1] + gradients[1], strict=True):
        torch.testing.assert_close(b, a, **tolerance)
    with pytest.raises(ValueError, match="float32 or float64 on the CPU, but got torch.float16"):
        fold(block.half().weights(), native=True)
