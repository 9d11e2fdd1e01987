"""A whole network in one native call against the plain torch code that defines it."""

import ase
import cases
import numpy as np
import pytest
import torch

from mdtrajnet_fast.system import System

HEADS = {
    "own": cases.OWN | {"envelope": True},
    "conserving": {"head": "conserving"},
    "published": {"velocity_readout": True},
    "displacement": {},
}
heads = pytest.mark.parametrize("options", HEADS.values(), ids=HEADS.keys())
# largest differences in Å and Å/fs, of motions of some 0.1 Å and 0.05 Å/fs
PRECISION = {torch.float64: 1e-12, torch.float32: 2e-6}
precisions = pytest.mark.parametrize("dtype", PRECISION, ids=["float64", "float32"])


def drifting_mixture() -> list[ase.Atoms]:
    """Isolated and periodic systems, atoms without neighbours, fragments out of sight."""
    apart = cases.hot("CH3CN", seed=7)
    apart.positions[3:] += [9.0, 0.0, 0.0]
    atoms = [*cases.mixture(), apart]
    for k, one in enumerate(atoms):
        one.set_momenta(one.get_momenta() + 0.02 * k * one.get_masses()[:, None])
    return atoms


def close(found, expected, tolerance):
    for x, y in zip(found, expected, strict=True):
        if y is None:
            assert x is None
        else:
            assert x.dtype == y.dtype and x.shape == y.shape
            assert x.isfinite().all()
            assert float((x - y).abs().max()) < tolerance


@heads
@precisions
def test_values(options, dtype):
    for seed in range(3):
        model = cases.model(seed, dtype, **options)
        graph = model.graph(System.from_atoms(drifting_mixture()))
        rng = torch.Generator().manual_seed(seed)
        for times in (1, 3):  # every atom at a time of its own
            t = 10 * torch.rand(times * graph.atoms, generator=rng, dtype=torch.float64).to(dtype)
            with torch.no_grad():
                found = model(graph, t, model.prepare("cpu"))
                expected = model(graph, t, model.prepare("reference"))
            close(found, expected, PRECISION[dtype])


@heads
def test_only_values_are_native(options, monkeypatch):
    """What is differentiated takes the torch code, whose gradients and tangents are known."""
    model = cases.model(**options).requires_grad_(True)
    graph = model.graph(System.from_atoms(cases.hot("CH3CH2OH")))
    t = torch.full((graph.atoms,), 7.0, dtype=torch.float64)

    def fail(*_, **__):
        raise AssertionError("the native call has no derivatives")

    with monkeypatch.context() as patch:
        patch.setattr("mdtrajnet_fast.ops.cpu.network", fail)
        model(graph, t).displacement.sum().backward()
        assert model.members[0].species_embedding.grad.abs().max() > 0
        with torch.no_grad(), torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(t, torch.ones_like(t))
            assert model(graph, dual).displacement.isfinite().all()
        with torch.no_grad(), pytest.raises(AssertionError, match="no derivatives"):
            model(graph, t)


@precisions
@pytest.mark.parametrize("threads", [1, 2])
def test_times_are_predicted_independently(dtype, threads):
    """To the bit: a time does not see the others asked for with it, nor a result the threads."""
    model = cases.model(dtype=dtype, **cases.OWN)
    system = System.from_atoms(drifting_mixture())
    times = np.linspace(0.7, 10.0, 11)
    together = model.displacements(model.graph(system), times)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for k, time in enumerate(times):
            alone = model.displacements(model.graph(system), np.array([time]))
            for one, many in zip(alone, together, strict=True):
                np.testing.assert_array_equal(one[0], many[k])
    finally:
        torch.set_num_threads(before)


def test_labels_out_of_range():
    model = cases.model(**cases.OWN)
    graph = model.graph(System.from_atoms(cases.hot("H2O")))
    t = torch.ones(graph.atoms, dtype=torch.float64)
    for name in ("species", "component"):
        label = getattr(graph, name)
        label[1] = 17
        with torch.no_grad(), pytest.raises(ValueError, match="atom 1 has 17"):
            model(graph, t)
        label[1] = 0
