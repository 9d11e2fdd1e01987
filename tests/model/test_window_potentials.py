"""Window potentials: their symmetries, their slopes, and the kernel against plain torch."""

import dataclasses

import ase
import cases
import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from mdtrajnet_fast import load_model, save_model
from mdtrajnet_fast.model import window_potentials
from mdtrajnet_fast.model.config import WindowPotentialsConfig
from mdtrajnet_fast.model.predictor import NativePredictor, TorchPredictor
from mdtrajnet_fast.model.window_potentials import ENDS, ENERGY, ROLES
from mdtrajnet_fast.system import System

# Sizes that fill no vector, all different from each other.
ODD = {"layers": 3, "radial": 7, "channels": 5, "products": 3, "hidden": 9}
SIZES = {
    "odd": ODD,
    "one layer": ODD | {"layers": 1},
    "beyond a vector": {"radial": 18, "channels": 19, "products": 21, "hidden": 37},
    "default": {},
}
# Of the largest value.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5}


def model(sizes=ODD, dtype=torch.float64, **options):
    """Random weights, those of the roles and of the second biases as well."""
    made = cases.model(window_potentials=sizes, **options)
    of = made.window_potentials
    for x in (of.role, of.second_bias):
        x += 0.3 * torch.randn_like(x)
    of.last *= 1 + 0.3 * torch.randn_like(of.last)
    return made.to(dtype)


def many():
    """Beyond one group of atoms and, around the atoms of the crystal, beyond one pass of edges."""
    return [*cases.mixture(), cases.hot("CH3CH2OH"), cases.diamond((2, 1, 1))]


def graph_of(made, atoms):
    return made.graph(System.from_atoms(atoms))


def native(made, atoms, role=ENERGY):
    """Atomic energies and slopes."""
    energy, slopes = made.predictor("cpu").slopes(graph_of(made, atoms), role)
    return energy.numpy(), slopes.numpy()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_kernel_is_plain_torch(instruction_set, sizes, dtype):
    made = model(sizes, dtype, radial_cutoff=5.0)
    graph, real = graph_of(made, many()), model(sizes, radial_cutoff=5.0)
    exact = graph_of(real, many())
    assert graph.row_ptr.diff().max() > 64 and graph.row_ptr.diff().min() == 0
    for role in ROLES:
        found = made.predictor().slopes(graph, role)
        expected = real.window_potentials.slopes(exact, torch.full_like(exact.species, role))
        assert [x.dtype for x in found] == [dtype, torch.float64]
        for x, y in zip(found, expected, strict=True):
            assert y.abs().max() > 0.1
            limit = TOLERANCE[dtype] * float(y.abs().max())
            torch.testing.assert_close(x.double(), y, rtol=0, atol=limit)


def gradients(made, graph, role, slopes, seed=1):
    """Of a random linear function of energies and slopes, by the names of the weights."""
    of, rng = made.window_potentials.requires_grad_(True), np.random.default_rng(seed)
    found = slopes(of, graph, role)
    loss = sum((x.double() * torch.from_numpy(rng.standard_normal(x.shape))).sum() for x in found)
    names, weights = zip(*of.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, weights, allow_unused=True), strict=True))


def by_torch(of, graph, role):
    return of.slopes(graph, role, learning=True)


def by_kernel(of, graph, role):
    return of.native_slopes()(graph, role)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_gradients_of_weights_are_those_of_plain_torch(
    instruction_set, monkeypatch, sizes, dtype, threads
):
    """Atom by atom in roles of their own."""
    made, real = model(sizes, dtype, radial_cutoff=5.0), model(sizes, radial_cutoff=5.0)
    graph, exact = graph_of(made, many()), graph_of(real, many())
    role = torch.from_numpy(np.random.default_rng(0).integers(0, len(ROLES), graph.atoms))
    monkeypatch.setattr("mdtrajnet_fast.ops.window_slopes.threads_for", lambda *_: threads)
    found = gradients(made, graph, role, by_kernel)
    for name, expected in gradients(real, exact, role, by_torch).items():
        if expected is None:  # of maps onward from the only layer
            assert found[name] is None or not found[name].numel()
            continue
        assert found[name].dtype == dtype
        limit = 5 * TOLERANCE[dtype] * float(expected.abs().max())
        torch.testing.assert_close(found[name].double(), expected, rtol=0, atol=limit, msg=name)
        if expected.numel():
            assert expected.abs().max() > 0.01, name
    again = gradients(made, graph, role, by_kernel)
    assert all(x is None or torch.equal(x, again[name]) for name, x in found.items())


def test_gradients_of_the_kernel_are_taken_once():
    made, role = model(), torch.zeros(9, dtype=torch.int64)
    of = made.window_potentials.requires_grad_(True)
    energy, slopes = of.native_slopes()(graph_of(made, cases.hot("CH3CH2OH")), role)
    loss = energy.sum() + slopes.square().sum()
    (once,) = torch.autograd.grad(loss, [of.last], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        once.sum().backward()
    for bad in (-1, len(ROLES)):
        with pytest.raises(ValueError, match="roles must lie in 0 .. 2, but atom 0 has"):
            of.native_slopes()(graph_of(made, cases.hot("CH3CH2OH")), role + bad)


def test_roles_differ():
    made, atoms = model(), cases.hot("CH3CH2OH")
    values = [native(made, atoms, role)[0].sum() for role in ROLES]
    assert min(abs(np.diff([*values, values[0]]))) > 1e-3
    for role in (-1, len(ROLES)):
        with pytest.raises(ValueError, match="role must lie in 0 .. 2, got"):
            native(made, atoms, role)


@pytest.mark.parametrize("role", ROLES)
def test_slopes_are_those_of_the_energies(role):
    made, step = model(), 1e-4
    atoms = cases.hot("CH3CN") + cases.hot("H2O", seed=1)
    atoms.positions[-3:] += [1.0, 2.0, 1.5]
    atoms.set_cell([4.0, 5.0, 6.0])
    atoms.pbc = [True, False, True]
    _, slopes = native(made, atoms, role)

    def moved(i, x, by):
        other = atoms.copy()
        other.positions[i, x] += by
        return native(made, other, role)[0].sum()

    found = [
        [(moved(i, x, step) - moved(i, x, -step)) / (2 * step) for x in range(3)]
        for i in range(len(atoms))
    ]
    np.testing.assert_allclose(slopes, found, atol=1e-6)
    assert abs(slopes).max() > 0.1


def test_symmetries():
    """Rotation with reflection, translation and the order of the atoms."""
    made, atoms = model(), cases.hot("CH3CH2OH")
    energy, slopes = native(made, atoms)
    order = np.random.default_rng(1).permutation(len(atoms))
    rotation = Rotation.random(random_state=2)
    other = atoms[order]
    other.positions = -rotation.apply(other.positions) + [40.0, -3.0, 7.0]
    turned, turned_slopes = native(made, other)
    np.testing.assert_allclose(turned, energy[order], atol=1e-10)
    np.testing.assert_allclose(turned_slopes, -rotation.apply(slopes[order]), atol=1e-10)


def test_momentum_and_angular_momentum_stay():
    made, together = model(), [*cases.mixture()[:4], cases.diamond()]
    _, slopes = native(made, together)
    first = 0
    for atoms in together:
        own = slopes[first : first + len(atoms)]
        first += len(atoms)
        np.testing.assert_allclose(own.sum(0), 0, atol=1e-10)
        if not atoms.pbc.any():
            np.testing.assert_allclose(np.cross(atoms.positions, own).sum(0), 0, atol=1e-10)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("sizes", [ODD, {}], ids=["odd", "default"])
@pytest.mark.parametrize("threads", [1, 3])
def test_bits_do_not_depend_on_company_or_threads(
    instruction_set, monkeypatch, sizes, dtype, threads
):
    made, together = model(sizes, dtype, radial_cutoff=5.0), many()
    alone = [native(made, atoms, ENDS) for atoms in together]
    monkeypatch.setattr("mdtrajnet_fast.model.predictor.threads_for", lambda *_: threads)
    for order in (range(len(together)), [5, 2, 0, 6, 4, 7, 1, 3]):
        found = native(made, [together[k] for k in order], ENDS)
        expected = [np.concatenate(x) for x in zip(*(alone[k] for k in order), strict=True)]
        for x, y in zip(found, expected, strict=True):
            np.testing.assert_array_equal(x, y)


def test_atoms_without_neighbours():
    made = model()
    energy, slopes = native(made, [cases.lone_atom(), cases.hot("H2O"), cases.lone_atom()])
    assert energy[0] == energy[-1] != 0
    assert not slopes[[0, -1]].any() and slopes[1:-1].any()


def test_neighbours_leave_smoothly():
    made = model()
    cutoff = made.config.radial_cutoff
    pairs = [ase.Atoms("CO", [[0, 0, 0], [0, 0, d]]) for d in (cutoff - 1e-3, cutoff + 1e-3, 1.2)]
    energy, slopes = native(made, pairs)
    np.testing.assert_allclose(energy[:2], energy[2:4], atol=1e-6)
    np.testing.assert_allclose(slopes[:4], 0, atol=1e-4)
    assert abs(slopes[4:]).max() > 0.1


def test_either_result_may_be_left_out():
    made = model()
    graph, predictor = graph_of(made, many()), made.predictor("cpu")
    energy, slopes = predictor.slopes(graph, ENDS)
    csr = (graph.atoms, *(x.data_ptr() for x in graph.csr))
    other, others = torch.zeros_like(energy), torch.zeros_like(slopes)
    species = graph.species.data_ptr()
    predictor.native.slopes(csr, species, ENDS, other.data_ptr(), 0, 1)
    predictor.native.slopes(csr, species, ENDS, 0, others.data_ptr(), 1)
    torch.testing.assert_close(other, energy, rtol=0, atol=0)
    torch.testing.assert_close(others, slopes, rtol=0, atol=0)


def test_predictors():
    """Of both kinds, with the weights as they were when they were made."""
    made = model()
    graph = graph_of(made, many())
    kinds = {"cpu": NativePredictor, "reference": TorchPredictor}
    predictors = {name: made.predictor(name) for name in kinds}
    expected = made.window_potentials.slopes(graph, torch.full_like(graph.species, ENDS))
    for x in made.window_potentials.parameters():
        x *= 1.5
    for name, kind in kinds.items():
        assert isinstance(predictors[name], kind)
        for x, y in zip(predictors[name].slopes(graph, ENDS), expected, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-10)
    single = dataclasses.replace(graph, r=graph.r.float())
    with pytest.raises(ValueError, match="the CPU kernels of a"):
        predictors["cpu"].slopes(single, ENDS)


@pytest.mark.parametrize(
    "bad, match",
    [
        ({"layers": 0}, "layers must be a whole number, at least 1"),
        ({"hidden": 2.5}, "hidden must be a whole number"),
        ({"channels": True}, "channels must be a whole number"),
        ({"window": -1.0}, "window .fs. must be a positive number"),
        ({"window": float("nan")}, "window .fs. must be a positive number"),
        ({"usual_uncertainty": 0.0}, "usual_uncertainty .eV/Å. must be a positive number"),
    ],
)
def test_sizes_are_checked(bad, match):
    with pytest.raises(ValueError, match=match):
        WindowPotentialsConfig(**bad)


def test_files_hold_them(tmp_path):
    of, system = cases.model(**cases.WINDOW_POTENTIALS), System.from_atoms(cases.hot("CH3CH2OH"))
    save_model(of, tmp_path / "model")
    again = load_model(tmp_path / "model", dtype="float64")
    assert again.config == of.config
    torch.testing.assert_close(again.potential_energy(system), of.potential_energy(system))


def test_features_are_the_same_some_atoms_at_a_time(monkeypatch):
    made = model(ODD | {"usual_uncertainty": 1.0}, radial_cutoff=5.0)
    of, graph = made.window_potentials, graph_of(made, many())
    of.rigidity[:] = torch.randn_like(of.rigidity)
    whole, uncertain = of.features(graph), of.uncertainties(graph)
    assert whole.shape == (graph.atoms, ODD["layers"] * ODD["hidden"]) and not whole.requires_grad
    monkeypatch.setattr(window_potentials, "_AT_ONCE", 7)
    torch.testing.assert_close(of.features(graph), whole, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(of.uncertainties(graph), uncertain, rtol=1e-12, atol=1e-12)
