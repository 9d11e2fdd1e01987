"""Dipole moments: the kernel against plain torch, symmetries, what is refused, files."""

import dataclasses

import cases
import numpy as np
import pytest
import torch
from cases import gentle
from scipy.spatial.transform import Rotation

from mdtrajnet_fast import MDtrajNetCalculator, Trajectory, load_model, save_model
from mdtrajnet_fast.md.simulation import model_hash
from mdtrajnet_fast.model import network
from mdtrajnet_fast.model.config import DipoleConfig
from mdtrajnet_fast.model.dipole import dipole_moments
from mdtrajnet_fast.model.predictor import NativePredictor, TorchPredictor
from mdtrajnet_fast.system import System

# Sizes that fill no vector, all different from each other.
ODD = {"layers": 3, "radial": 7, "channels": 5, "products": 3, "hidden": 9}
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5}


def model(sizes=ODD, dtype=torch.float64, **options):
    """Random weights, those of the role and of the second biases as well."""
    made = cases.model(dipole=sizes, **options)
    for x in (made.dipole.role, made.dipole.second_bias):
        x += 0.3 * torch.randn_like(x)
    return made.to(dtype)


def molecules():
    return [cases.hot(name, seed=k) for k, name in enumerate(("CH3CH2OH", "H2O", "CH3CN"))]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("sizes", [ODD, {}], ids=["odd", "default"])
def test_kernel_is_plain_torch(instruction_set, sizes, dtype):
    """Beside window potentials, of which the charges know nothing."""
    options = {**cases.WINDOW_POTENTIALS, "radial_cutoff": 5.0}
    made, real = model(sizes, dtype, **options), model(sizes, **options)
    system = System.from_atoms([*molecules(), cases.lone_atom()])
    exact = real.graph(system)
    expected = real.dipole.charges(exact)
    found = made.predictor("cpu").charges(made.graph(system))
    assert found.dtype == dtype
    error = TOLERANCE[dtype] * float(expected.abs().max())
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=error)
    wanted = dipole_moments(expected, exact, system)
    torch.testing.assert_close(made.dipole_moments(system), wanted, rtol=0, atol=10 * error)
    assert wanted[:3].abs().max() > 0.1
    assert not wanted[3].any()  # a lone atom


def test_gradients_are_of_the_same_function():
    made, system = model(), System.from_atoms(molecules())
    fast = made.dipole_moments(system)
    made.requires_grad_(True)
    slow = made.dipole_moments(system)
    torch.testing.assert_close(slow.detach(), fast, rtol=1e-10, atol=1e-10)
    slow.square().sum().backward()
    assert made.dipole.radial.grad.abs().max() > 0


def test_charges_make_the_dipole_by_hand():
    """sum_i (q_i - q) r_i in each component: two waters far from each other add up."""
    made, water = model(), cases.hot("H2O")
    far = cases.hot("H2O", seed=1)
    far.positions += [30.0, 0.0, 5.0]
    charges = made.predictor().charges(made.graph(System.from_atoms(water))).numpy()
    by_hand = (charges - charges.mean()) @ water.positions
    np.testing.assert_allclose(made.dipoles(water), by_hand, atol=1e-12)
    assert abs(by_hand).max() > 0.01
    both = made.dipoles(water + far)
    np.testing.assert_allclose(both, by_hand + made.dipoles(far), atol=1e-12)


def test_symmetries():
    """Rotation with reflection, translation and the order of the atoms."""
    made, atoms = model(), cases.hot("CH3CH2OH")
    order = np.random.default_rng(1).permutation(len(atoms))
    rotation = Rotation.random(random_state=2)
    other = atoms[order]
    other.positions = -rotation.apply(other.positions) + [40.0, -3.0, 7.0]
    expected = made.dipoles(atoms)
    np.testing.assert_allclose(made.dipoles(other), -rotation.apply(expected), atol=1e-10)
    assert np.linalg.norm(expected) > 0.1


def test_far_from_the_origin_in_float32():
    made, atoms = model(dtype=torch.float32), cases.hot("CH3CH2OH")
    near = made.dipoles(atoms)
    atoms.positions += 1e4
    np.testing.assert_allclose(made.dipoles(atoms), near, atol=1e-5)


def test_of_one_of_many_and_of_trajectories(monkeypatch):
    made, atoms = model(), cases.hot("CH3CH2OH")
    moves = 0.05 * np.random.default_rng(0).normal(size=(7, len(atoms), 3))
    frames = Trajectory(atoms, np.arange(7.0), atoms.positions + moves, 0 * moves)
    each = np.stack([made.dipoles(frame) for frame in frames])
    assert each.shape == (7, 3) and np.ptp(each, 0).min() > 0
    np.testing.assert_allclose(made.dipoles(frames), each, atol=1e-14)
    monkeypatch.setattr(network, "_DIPOLE_ATOMS", 3 * len(atoms))  # three frames, three, one
    np.testing.assert_allclose(made.dipoles(frames), each, atol=1e-14)
    assert made.dipoles([]).shape == (0, 3)


def test_predictors():
    """Of both kinds, with the weights as they were when they were made."""
    made = model()
    graph = made.graph(System.from_atoms(molecules()))
    kinds = {"cpu": NativePredictor, "reference": TorchPredictor}
    predictors = {name: made.predictor(name) for name in kinds}
    expected = made.dipole.charges(graph)
    for x in made.dipole.parameters():
        x *= 1.5
    for name, kind in kinds.items():
        assert isinstance(predictors[name], kind)
        found = predictors[name].charges(graph)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    single = dataclasses.replace(graph, r=graph.r.float())
    with pytest.raises(ValueError, match="the CPU kernels of a"):
        predictors["cpu"].charges(single)
    csr = (graph.atoms, *(x.data_ptr() for x in graph.csr))
    without = cases.model().predictor("cpu").native
    with pytest.raises(ValueError, match="no dipole"):
        without.charges(csr, graph.species.data_ptr(), 0, 1)


def test_what_is_refused():
    made = model()
    with pytest.raises(ValueError, match="system 1 is periodic"):
        made.dipoles([cases.hot("H2O"), cases.diamond()])
    with pytest.raises(ValueError, match="model 'unnamed' has no dipole: .* target = \"dipole\""):
        cases.model().dipoles(cases.hot("H2O"))
    with pytest.raises(ValueError, match="channels must be a whole number, at least 1"):
        DipoleConfig(channels=0)


def test_calculator():
    made = gentle(**cases.WINDOW_POTENTIALS, dipole=ODD)
    atoms = cases.hot("CH3CH2OH")
    atoms.calc = MDtrajNetCalculator(made)
    np.testing.assert_array_equal(atoms.get_dipole_moment(), made.dipoles(atoms))
    assert atoms.get_potential_energy() != 0
    atoms.calc = MDtrajNetCalculator(gentle(**cases.WINDOW_POTENTIALS))
    assert abs(atoms.get_forces()).max() > 0
    with pytest.raises(ValueError, match="has no dipole"):
        atoms.get_dipole_moment()


def test_files_hold_it(tmp_path):
    made, atoms = model(), cases.hot("CH3CH2OH")
    save_model(made, tmp_path / "model")
    again = load_model(tmp_path / "model", dtype="float64")
    assert again.config == made.config and again.config.dipole == DipoleConfig(**ODD)
    np.testing.assert_array_equal(again.dipoles(atoms), made.dipoles(atoms))


def test_runs_do_not_depend_on_it():
    """A model tells by its hash which function moved atoms: a dipole may come later."""
    made, bare = model(), cases.model()
    state = {k: v for k, v in made.state_dict().items() if not k.startswith("dipole.")}
    bare.load_state_dict(state)
    assert model_hash(made) == model_hash(bare) != model_hash(cases.model(seed=1))
