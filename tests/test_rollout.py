"""Rollout, simulate and the ASE dynamics: conservation, restart, batches, independence of dt."""

import ase
import cases
import numpy as np
import pytest
import torch
from ase.io.trajectory import Trajectory as AseTrajectory
from ase.md.logger import MDLogger

from mdtrajnet_fast import MDtrajNetDynamics, RolloutError, Trajectory, simulate
from mdtrajnet_fast.analysis import (
    degrees_of_freedom,
    kinetic_temperature,
    total_angular_momentum,
    total_momentum,
)
from mdtrajnet_fast.rollout import conserve
from mdtrajnet_fast.system import System


def gentle(scale=0.03, **options):
    """A random model whose increments are small, so that random weights make a long trajectory."""
    model = cases.model(**options)
    for block in model.members[0].blocks:
        block.out_vector *= scale
    return model


OWN, PUBLISHED = gentle(**cases.OWN), gentle()
both = pytest.mark.parametrize("model", [OWN, PUBLISHED], ids=["own", "published"])


def bits(trajectory):
    return trajectory.times, trajectory.positions, trajectory.momenta


def same(a, b):
    assert all(np.array_equal(x, y) for x, y in zip(bits(a), bits(b), strict=True))


@both
def test_frames(model):
    atoms = cases.hot("CH3CH2OH")
    start = atoms.positions.copy()
    trajectory = simulate(atoms, 2.0, duration=47.0, model=model)
    np.testing.assert_array_equal(trajectory.times, np.arange(0, 47, 2.0))
    assert trajectory.positions.shape == trajectory.velocities.shape == (24, 9, 3)
    np.testing.assert_array_equal(trajectory.positions[0], start)
    np.testing.assert_allclose(trajectory.velocities[0], cases.velocities(atoms), rtol=1e-14)
    np.testing.assert_array_equal(atoms.positions, start)
    assert len(list(trajectory)) == len(trajectory) == 24
    np.testing.assert_array_equal(trajectory[-1].positions, trajectory.positions[-1])
    np.testing.assert_allclose(cases.velocities(trajectory[3]), trajectory.velocities[3])
    assert len(trajectory[2:5]) == 3


def test_first_window_is_the_prediction():
    """Within the first window an own model's trajectory is its prediction, up to its rotation."""
    atoms = cases.hot("CH3CH2OH")
    trajectory = simulate(atoms, 1.0, duration=10, model=OWN)
    positions, _ = OWN.predict(atoms, np.arange(1.0, 11.0))
    np.testing.assert_allclose(trajectory.positions[1:], positions, atol=1e-12)


@both
def test_momenta_are_kept(model):
    atoms = cases.hot("CH3CH2OH")
    atoms.set_momenta(atoms.get_momenta() + 0.3)
    t = simulate(atoms, 3.0, duration=300, model=model)
    masses = atoms.get_masses()
    p, v, x = total_momentum(t.velocities, masses), t.velocities, t.positions
    np.testing.assert_allclose(p, p[[0]].repeat(len(p), 0), atol=1e-12)
    centre = (masses[:, None] * x).sum(1) / masses.sum()
    straight = centre[0] + t.times[:, None] * p[0] / masses.sum()
    np.testing.assert_allclose(centre, straight, atol=1e-10)
    angular = total_angular_momentum(x, v, masses)
    np.testing.assert_allclose(angular, angular[[0]].repeat(len(p), 0), atol=1e-10)
    assert np.ptp(t.positions, axis=0).max() > 0.1


def test_linear_molecule_keeps_its_angular_momentum():
    atoms = cases.hot("CO2")
    atoms.positions[:, :2] = 0
    t = simulate(atoms, 5.0, duration=50, model=OWN)
    angular = total_angular_momentum(t.positions, t.velocities, atoms.get_masses())
    np.testing.assert_allclose(angular, angular[[0]].repeat(len(t), 0), atol=1e-10)


def test_conserve_leaves_what_is_conserved():
    """A motion that conserves both momenta already, free flight of a rigid body's atoms, stays."""
    atoms = cases.hot("CH3CH2OH")
    system = System.from_atoms(atoms)
    times = np.array([0.0, 0.0])
    moved = np.zeros((2, 9, 3))
    velocity = np.repeat(system.velocities[None], 2, 0)
    kept = conserve(system, times, moved, velocity, np.zeros(9, int), np.ones(9, bool))
    np.testing.assert_allclose(kept[0], moved, atol=1e-15)
    np.testing.assert_allclose(kept[1], velocity, atol=1e-14)


@both
def test_end_state_does_not_depend_on_dt(model):
    atoms = cases.hot("CH3CH2OH")
    ends = [simulate(atoms, dt, duration=60, model=model) for dt in (0.1, 1, 5, 7.5, 20, 60)]
    for trajectory in ends:
        assert trajectory.times[-1] == 60
        np.testing.assert_array_equal(trajectory.positions[-1], ends[0].positions[-1])
        np.testing.assert_array_equal(trajectory.momenta[-1], ends[0].momenta[-1])


@pytest.mark.parametrize("suffix", [".traj", ".extxyz", ".h5"])
@pytest.mark.parametrize("dt", [1.0, 3.0, 0.7])
def test_restart_is_exact(tmp_path, suffix, dt):
    model = gentle(**cases.OWN).float()
    atoms = cases.hot("CH3CH2OH")
    whole = simulate(atoms, dt, duration=100, model=model, trajectory=tmp_path / f"whole{suffix}")
    path = tmp_path / f"parts{suffix}"
    for duration in (4.0, 37.0, 37.0, 60.0):  # the third call finds nothing to do
        simulate(atoms, dt, duration=duration, model=model, trajectory=path, resume=True)
    last = simulate(atoms, dt, duration=100, model=model, trajectory=path, resume=True)
    same(last, whole)
    same(Trajectory.read(path), whole)
    same(Trajectory.read(tmp_path / f"whole{suffix}"), whole)
    assert str(last.trust) == str(whole.trust)


def test_restart_refuses_other_settings(tmp_path):
    atoms, path = cases.hot("H2O"), tmp_path / "a.h5"
    simulate(atoms, 1.0, duration=20, model=OWN, trajectory=path)
    with pytest.raises(FileExistsError):
        simulate(atoms, 1.0, duration=20, model=OWN, trajectory=path)
    with pytest.raises(ValueError, match="dt_fs"):
        simulate(atoms, 2.0, duration=40, model=OWN, trajectory=path, resume=True)
    with pytest.raises(ValueError, match="model_hash"):
        simulate(atoms, 1.0, duration=40, model=PUBLISHED, trajectory=path, resume=True)
    with pytest.raises(ValueError, match="atomic numbers"):
        simulate(cases.hot("NH3"), 1.0, duration=40, model=OWN, trajectory=path, resume=True)
    assert len(Trajectory.read(path)) == 21


@both
def test_many_equal_single(model):
    mixture = cases.mixture()
    together = simulate(mixture, 4.0, duration=40, model=model)
    for atoms, trajectory in zip(mixture, together, strict=True):
        alone = simulate(atoms, 4.0, duration=40, model=model)
        np.testing.assert_allclose(trajectory.positions, alone.positions, atol=1e-9)
        np.testing.assert_allclose(trajectory.velocities, alone.velocities, atol=1e-10)


def test_many_files(tmp_path):
    pair = [cases.hot("H2O"), cases.hot("NH3")]
    paths = [tmp_path / "a.h5", tmp_path / "b.traj"]
    simulate(pair, 1.0, duration=15, model=OWN, trajectory=paths)
    again = simulate(pair, 1.0, duration=30, model=OWN, trajectory=paths, resume=True)
    whole = simulate(pair, 1.0, duration=30, model=OWN)
    for a, b, path in zip(again, whole, paths, strict=True):
        same(a, b)
        same(Trajectory.read(path), b)
    with pytest.raises(ValueError, match="list of 2 trajectory files"):
        simulate(pair, 1.0, duration=30, model=OWN, trajectory=tmp_path / "c.h5")


def test_periodic_positions_are_unwrapped():
    atoms = cases.diamond((1, 1, 1))
    velocity = 0.1
    atoms.set_momenta(atoms.get_momenta() + np.array([velocity, 0, 0]) * 12.011 / ase.units.fs)
    trajectory = simulate(atoms, 10.0, duration=200, model=OWN)
    drift = (trajectory.positions - trajectory.positions[0]).mean(1)
    np.testing.assert_allclose(drift[:, 0], velocity * trajectory.times, atol=1e-9)


def test_velocities_and_temperature():
    atoms = cases.hot("CH3CH2OH")
    cold = atoms.copy()
    cold.set_momenta(np.zeros((9, 3)))
    v = cases.velocities(atoms)
    given = simulate(cold, 1.0, duration=10, model=OWN, velocities=v)
    np.testing.assert_allclose(given.velocities[0], v, rtol=1e-14)
    drawn = simulate(cold, 1.0, duration=10, model=OWN, temperature_K=350, seed=3)
    assert degrees_of_freedom(cold) == 21
    kinetic = kinetic_temperature(drawn.velocities[:1], cold.get_masses(), 21)
    np.testing.assert_allclose(kinetic, 350, rtol=1e-12)
    again = simulate(cold, 1.0, duration=10, model=OWN, temperature_K=350, seed=3)
    same(again, drawn)
    two = simulate([cold, cold], 1.0, duration=10, model=OWN, temperature_K=350, seed=3)
    np.testing.assert_array_equal(two[0].momenta[0], drawn.momenta[0])
    assert abs(two[1].momenta[0] - two[0].momenta[0]).max() > 0.01
    with pytest.raises(ValueError, match="at rest"):
        simulate(cold, 1.0, duration=10, model=OWN)
    with pytest.raises(ValueError, match="not both"):
        simulate(cold, 1.0, duration=10, model=OWN, temperature_K=300, velocities=v)
    with pytest.raises(ValueError, match=r"shape \(9, 3\)"):
        simulate(cold, 1.0, duration=10, model=OWN, velocities=v[:4])
    with pytest.raises(ValueError, match="temperature_K"):
        simulate(cold, 1.0, duration=10, model=OWN, temperature_K=-5)


@pytest.mark.parametrize(
    "settings",
    [{"dt": 0.0}, {"dt": -1.0}, {"dt": 30.0}, {"dt": np.nan}, {"window": 11.0}, {"window": 0.0}],
)
def test_bad_settings_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        simulate(cases.hot("H2O"), duration=20.0, model=OWN, **settings)


def test_unknown_element_is_refused_before_the_run(tmp_path):
    atoms = ase.Atoms("CSi", positions=[[0, 0, 0], [0, 0, 1.8]])
    atoms.set_momenta([[0, 0, 1.0], [0, 0, -1.0]])
    with pytest.raises(ValueError, match="Si"):
        simulate(atoms, 1.0, duration=10, model=OWN, trajectory=tmp_path / "a.h5")
    assert not (tmp_path / "a.h5").exists()


def test_broken_trajectory_keeps_its_frames(tmp_path):
    model = gentle(**cases.OWN)
    atoms, path = cases.hot("H2O"), tmp_path / "a.h5"
    simulate(atoms, 1.0, duration=20, model=model, trajectory=path)
    with torch.no_grad():
        model.members[0].species_embedding[1] = torch.nan
    other = tmp_path / "b.h5"
    with pytest.raises(RolloutError, match=r"broke before 10 fs: atom \d of system 0"):
        simulate(atoms, 1.0, duration=20, model=model, trajectory=other)
    assert len(Trajectory.read(other)) == 1


def test_window():
    atoms = cases.hot("CH3CH2OH")
    short = simulate(atoms, 1.0, duration=20, model=OWN, window=5.0)
    long = simulate(atoms, 1.0, duration=20, model=OWN)
    np.testing.assert_allclose(short.positions[:6], long.positions[:6], atol=1e-12)
    assert abs(short.positions[6] - long.positions[6]).max() > 1e-6


def test_ase_dynamics_is_simulate(tmp_path):
    atoms = cases.hot("CH3CH2OH")
    expected = simulate(atoms, 2.5, duration=50, model=OWN)
    dynamics = MDtrajNetDynamics(
        atoms,
        2.5 * ase.units.fs,
        model=OWN,
        trajectory=str(tmp_path / "ase.traj"),
        logfile=str(tmp_path / "md.log"),
        loginterval=2,
    )
    times = []
    dynamics.attach(lambda: times.append(dynamics.get_time() / ase.units.fs), interval=4)
    dynamics.attach(MDLogger(dynamics, atoms, str(tmp_path / "mine.log")), interval=1)
    dynamics.run(20)
    np.testing.assert_array_equal(atoms.positions, expected.positions[-1])
    np.testing.assert_array_equal(atoms.get_momenta(), expected.momenta[-1])
    np.testing.assert_allclose(times, np.arange(0, 51, 10.0))
    with AseTrajectory(tmp_path / "ase.traj") as file:
        assert len(file) == 11
        np.testing.assert_array_equal(file[3].positions, expected.positions[6])
    log = np.loadtxt(tmp_path / "mine.log", skiprows=1)
    assert log.shape == (21, 5)
    assert np.isnan(log[:, 1:3]).all() and np.isfinite(log[:, 3:]).all()
    assert len((tmp_path / "md.log").read_text().splitlines()) == 12


def test_ase_observers_may_change_the_atoms():
    atoms = cases.hot("CH3CH2OH")
    dynamics = MDtrajNetDynamics(atoms, 1.0 * ase.units.fs, model=OWN)
    dynamics.run(3)
    atoms.set_momenta(0.5 * atoms.get_momenta())
    expected = simulate(atoms, 1.0, duration=10, model=OWN)
    dynamics.run(5)
    np.testing.assert_array_equal(atoms.positions, expected.positions[5])
    with pytest.raises(ValueError, match="at rest"):
        MDtrajNetDynamics(ase.Atoms("CO", positions=[[0, 0, 0], [0, 0, 1]]), 1.0, model=OWN)
