"""The potential energy: its symmetries, its training, and rollouts that conserve the energy."""

import csv
import dataclasses

import ase
import cases
import numpy as np
import pytest
import torch
from pair_cases import potential_config
from scipy.spatial.transform import Rotation

from mdtrajnet_fast import fit, load_model, simulate
from mdtrajnet_fast.data.pairs import Pairs
from mdtrajnet_fast.data.records import load_records
from mdtrajnet_fast.md import window
from mdtrajnet_fast.mechanics import total_angular_momentum, total_momentum
from mdtrajnet_fast.model.predictor import TorchPredictor
from mdtrajnet_fast.system import System
from mdtrajnet_fast.train.evaluate import energy_errors, rms_energy_errors

SIZES = cases.POTENTIAL["potential"]


def model():
    """A random model with gentle increments and a random potential, in float64."""
    return cases.gentle(**cases.OWN, **cases.POTENTIAL)


def energy(of, atoms):
    return of.potential_energy(System.from_atoms(atoms)).numpy()


def total_energy(of, atoms):
    return energy(of, atoms)[0] + atoms.get_kinetic_energy()


def test_symmetries():
    """Rotation with reflection, translation and the order of the atoms change nothing."""
    atoms, of = cases.hot("CH3CH2OH"), model()
    (value,) = energy(of, atoms)
    other = atoms[np.random.default_rng(1).permutation(len(atoms))]
    other.positions = -Rotation.random(random_state=2).apply(other.positions) + [40.0, -3.0, 7.0]
    np.testing.assert_allclose(energy(of, other), value, atol=1e-10)
    other.positions[2] += 0.1
    assert abs(energy(of, other) - value) > 1e-4


def test_systems_are_their_own_and_neighbours_leave_smoothly():
    of, many = model(), [cases.hot("CH3CH2OH"), cases.hot("CO2"), cases.diamond()]
    alone = [energy(of, one)[0] for one in many]
    np.testing.assert_allclose(energy(of, many), alone, atol=1e-10)
    cutoff = of.config.radial_cutoff
    far = [ase.Atoms("CO", [[0, 0, 0], [0, 0, cutoff + d]]) for d in (1e-3, -1e-3)]
    apart, together = energy(of, far)
    assert apart == pytest.approx(together, abs=1e-7)
    (near,) = energy(of, ase.Atoms("CO", [[0, 0, 0], [0, 0, 1.2]]))
    assert abs(near - apart) > 1e-4


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("sizes", [SIZES, {}], ids=["small", "default"])
@pytest.mark.parametrize("threads", [1, 2])
def test_kernel_is_plain_torch(dtype, sizes, threads):
    of = cases.model(dtype=dtype, **cases.OWN, potential=sizes)
    system = System.from_atoms([*cases.mixture(), cases.hot("CH3CH2OH")])
    graph = of.graph(system)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        kernel = of.predictor().energies(graph)
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(kernel, of.potential(graph))
    assert kernel.abs().max() > 0.01
    reference = of.predictor("reference")
    assert isinstance(reference, TorchPredictor)
    torch.testing.assert_close(reference.energies(graph), of.potential(graph), rtol=0, atol=0)
    made = of.predictor()
    with torch.no_grad():
        of.potential.last.weight *= 2
    for backend in (None, "reference"):
        torch.testing.assert_close(of.predictor(backend).energies(graph), 2 * kernel)
    torch.testing.assert_close(made.energies(graph), kernel, rtol=0, atol=0)
    other = torch.float64 if dtype == torch.float32 else torch.float32
    with pytest.raises(ValueError, match="the CPU kernels of a"):
        of.predictor().energies(cases.model(dtype=other, **cases.OWN).graph(system))


@pytest.mark.parametrize("dt", [10.0, 2.5])
def test_rollouts_conserve_the_energy(dt):
    of, many = model(), [cases.hot("CH3CH2OH"), cases.hot("CO2"), cases.hot("NH3")]
    done = simulate(many, dt, duration=200, model=of, method="plain")
    drift = dataclasses.replace(of.config, potential=None)
    without = cases.model(**cases.OWN)
    without.load_state_dict(of.state_dict(), strict=False)
    assert without.config == drift
    free = simulate(many, dt, duration=200, model=without, method="plain")
    for k, atoms in enumerate(many):
        ends = done[k][:: round(10 / dt)]
        energies = np.array([total_energy(of, frame) for frame in ends])
        np.testing.assert_allclose(energies, energies[0], atol=1e-9)
        others = [total_energy(of, frame) for frame in free[k]]
        assert np.ptp(others) > 1e-3
        masses = atoms.get_masses()
        x, v = done[k].positions, done[k].velocities
        momentum = total_momentum(v, masses)
        np.testing.assert_allclose(
            momentum, np.broadcast_to(momentum[0], momentum.shape), atol=1e-9
        )
        spin = total_angular_momentum(x, v, masses)
        np.testing.assert_allclose(spin[:: round(10 / dt)] - spin[0], 0, atol=1e-8)
    if dt == 2.5:  # the frames within a window lead to its end, which does not depend on them
        ends = simulate(many, 10.0, duration=200, model=of, method="plain")
        for one, other in zip(done, ends, strict=True):
            np.testing.assert_array_equal(one.momenta[::4], other.momenta)


def test_reversible_windows_are_drawn_to_the_energy(monkeypatch):
    """By the share 1 - exp(-rate window) of the way each, and not at all with a rate of 0."""
    monkeypatch.setattr(window, "SETTLING_FS", 0.0)
    of, atoms = model(), cases.hot("CH3CH2OH")
    start, ends = total_energy(of, atoms), {}
    for rate in (0.0, 0.02, 5.0):
        run = simulate(atoms, 10.0, duration=10, model=of, energy_rate=rate)
        ends[rate] = run.velocities[-1]
        energy = total_energy(of, run[-1])
        assert (abs(energy - start) < 1e-9) == (rate == 5.0)
    expected = ends[0.0] + (1 - np.exp(-0.2)) * (ends[5.0] - ends[0.0])
    np.testing.assert_allclose(ends[0.02], expected, atol=1e-12)
    run = simulate(atoms, 2.5, duration=300, model=of, energy_rate=5.0)
    energies = [total_energy(of, frame) for frame in run[::4]]
    np.testing.assert_allclose(energies, start, atol=1e-9)


def test_the_energy_to_keep_is_that_of_the_first_windows():
    of, many = model(), [cases.hot("CH3CH2OH"), cases.hot("NH3")]
    settings = {"duration": 400, "model": of, "energy_rate": 5.0}
    for one in (many[0], many[1]):
        run, free = (simulate(one, 10.0, **settings | {"energy_rate": r}) for r in (5.0, 0.0))
        np.testing.assert_array_equal(run.momenta[:21], free.momenta[:21])  # 200 fs
        energies = np.array([total_energy(of, x) for x in run])
        assert np.ptp(energies[:21]) > 1e-3
        np.testing.assert_allclose(energies[-5:], energies[:21].mean(), atol=1e-9)


def test_restart_is_exact(tmp_path):
    atoms, of = cases.hot("CH3CH2OH"), model()
    whole = simulate(atoms, 2.0, duration=300, model=of)
    for duration in (37, 150, 270):  # before and after the energy to keep is known
        simulate(atoms, 2.0, duration=duration, model=of, trajectory=tmp_path / "a.h5", resume=True)
    resumed = simulate(
        atoms, 2.0, duration=300, model=of, trajectory=tmp_path / "a.h5", resume=True
    )
    for a, b in ((whole.positions, resumed.positions), (whole.momenta, resumed.momenta)):
        np.testing.assert_array_equal(a, b)
    other = model()
    other.potential.last.weight *= 1.1
    with pytest.raises(ValueError, match="model_hash"):
        simulate(atoms, 2.0, duration=320, model=other, trajectory=tmp_path / "a.h5", resume=True)


def test_others_keep_their_energy_when_one_breaks(monkeypatch):
    of, many, calls = model(), [cases.hot("CO2"), cases.hot("CH3CH2OH"), cases.hot("NH3")], []
    of.backend, predicted = "reference", TorchPredictor.tensors

    def breaks_in_the_third_window(self, graph, times):
        calls.append(times)
        moved, velocity = predicted(self, graph, times)
        if len(calls) > 2 and graph.atoms > 7:
            moved[:, 5] += 10.0
        return moved, velocity

    monkeypatch.setattr(TorchPredictor, "tensors", breaks_in_the_third_window)
    with pytest.warns(RuntimeWarning, match="system 1: the trajectory broke"):
        done = simulate(many, 10.0, duration=100, model=of, method="plain")
    for k in (0, 2):
        energies = [total_energy(of, frame) for frame in done[k]]
        assert len(energies) == 11
        np.testing.assert_allclose(energies, energies[0], atol=1e-9)


@pytest.mark.parametrize("method", ["reversible", "plain"])
@pytest.mark.parametrize("dt", [10.0, 50.0])
def test_others_keep_their_energy_natively_when_one_breaks(method, dt):
    """To the bit, before and after the energy to keep is known."""
    of = model()
    of.members[0].species_embedding[of.config.species.index("N")] = np.nan
    lone = ase.Atoms("N", momenta=[[0.0, 0.0, 20.0]])  # whose own motion has nothing of its weights
    hydrogen = ase.Atoms("H2", [[0, 0, 43.0], [0, 0.74, 43.0]], momenta=np.zeros((2, 3)))
    meets = lone + hydrogen
    many = [cases.hot("CO2"), meets, cases.hot("CH3CH2OH")]
    settings = {"duration": 400, "model": of, "method": method}
    with pytest.warns(RuntimeWarning, match="system 1: the trajectory broke"):
        done = simulate(many, dt, **settings)
    assert 200 < done[1].times[-1] < 300
    for k in (0, 2):
        alone = simulate(many[k], dt, **settings)
        np.testing.assert_array_equal(done[k].positions, alone.positions)
        np.testing.assert_array_equal(done[k].momenta, alone.momenta)


def test_a_model_without_a_potential_says_so():
    with pytest.raises(ValueError, match='has no potential energy.*or "potential" in a recipe'):
        cases.model().potential_energy(System.from_atoms(cases.hot("CO2")))
    with pytest.raises(ValueError, match="radial must be a whole number, at least 2, got 1"):
        cases.config(potential={"radial": 1})


@pytest.fixture
def config(water_and_ammonia, tmp_path):
    sizes = {"radial": 12, "products": 16, "hidden": 32}
    options = {"steps": 300, "max_lag_fs": 30.0, "validation_pairs": 128}
    return potential_config("potential", water_and_ammonia, tmp_path, sizes, **options)


def test_training(config, water_and_ammonia, tmp_path):
    """Energies are learned from velocities alone; the motion stays as it is; files hold both."""
    trained = fit(config, progress=False)
    with (tmp_path / "run" / "log.csv").open() as file:
        last = list(csv.DictReader(file))[-1]
    assert float(last["val_held_energy"]) < 0.3 * float(last["val_held_unchanged"])
    motion = load_model(tmp_path / "motion").state_dict()
    saved = load_model(tmp_path / "run" / "model")
    assert saved.config.potential == trained.config.potential
    assert saved.config.potential.products == 16
    for name, value in saved.state_dict().items():
        torch.testing.assert_close(value, trained.state_dict()[name], rtol=0, atol=0)
        if not name.startswith("potential"):
            torch.testing.assert_close(value, motion[name], rtol=0, atol=0)
    assert (tmp_path / "run" / "curves.png").stat().st_size > 1000

    pairs = Pairs(load_records(water_and_ammonia, trajectories=["traj01"]))
    found = rms_energy_errors(saved, pairs, 128, 30.0)
    assert found["energy"] == pytest.approx(float(last["val_held_energy"]), rel=1e-5)
    batch = pairs.draw(np.random.default_rng(0), 5, 30.0)
    wrong = energy_errors(saved, batch).numpy()
    start, end = batch.system, batch.end
    change = [saved.potential_energy(x).detach().numpy() + x.kinetic_energy() for x in (start, end)]
    np.testing.assert_allclose(wrong, change[1] - change[0], atol=1e-5)


def test_bad_settings_are_refused(config):
    with pytest.raises(
        ValueError,
        match="target must be one of motion, potential, window_potentials, dipole, got .energy",
    ):
        dataclasses.replace(config, target="energy")
    with pytest.raises(ValueError, match="needs the model that it is of: initial"):
        dataclasses.replace(config, initial=None)
