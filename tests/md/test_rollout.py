"""Rollout, simulate and the ASE dynamics: conservation, restart, batches, independence of dt."""

import pickle
import resource

import ase
import cases
import numpy as np
import pytest
from ase.build import molecule
from ase.collections import g2
from ase.constraints import FixAtoms
from ase.io.trajectory import Trajectory as AseTrajectory
from ase.md.logger import MDLogger
from cases import gentle

from mdtrajnet_fast import _C, MDtrajNetDynamics, RolloutError, Trajectory, load_model, simulate
from mdtrajnet_fast.analysis.trust import trust_summary
from mdtrajnet_fast.md import ase_dynamics, simulation
from mdtrajnet_fast.md.rollout import rollout
from mdtrajnet_fast.md.window import NEWTON_STEPS, Broke, Kept
from mdtrajnet_fast.mechanics import (
    degrees_of_freedom,
    kinetic_temperature,
    total_angular_momentum,
    total_momentum,
)
from mdtrajnet_fast.model.predictor import TorchPredictor
from mdtrajnet_fast.system import System

PREDICTIONS = {"reversible": 6, "plain": 1}  # of a window with frames within

OWN, PUBLISHED = gentle(**cases.OWN), gentle()
both = pytest.mark.parametrize("model", [OWN, PUBLISHED], ids=["own", "published"])
maps = pytest.mark.parametrize("method", ["reversible", "plain"])


def bits(trajectory):
    state = trajectory.times, trajectory.positions, trajectory.momenta
    scalars = trajectory.potential_energies, trajectory.heat
    return *state, *(np.empty(0) if known is None else known for known in scalars)


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
    """Within the first plain window an own model's trajectory is its prediction, up to rotation."""
    atoms = cases.hot("CH3CH2OH")
    trajectory = simulate(atoms, 1.0, duration=10, model=OWN, method="plain")
    positions, _ = OWN.predict(atoms, np.arange(1.0, 11.0))
    np.testing.assert_allclose(trajectory.positions[1:], positions, atol=1e-12)


def plain(model, atoms, times):
    """Frames of a plain window from these atoms."""
    system, p = System.from_atoms(atoms), atoms.get_momenta()
    frames = [
        next(rollout(model, system, p, dt=t, window=t, method="plain"))
        for t in np.atleast_1d(times)
    ]
    return [moved(atoms, frame.positions[0], frame.momenta[0]) for frame in frames]


def moved(atoms, positions, momenta):
    new = atoms.copy()
    new.positions, new.arrays["momenta"] = positions, np.array(momenta)
    return new


def reversed_(atoms):
    return moved(atoms, atoms.positions, -atoms.get_momenta())


def blend(atoms, parts):
    """A sum of states with factors, by the momenta and angular momentum of `atoms`."""
    x = sum(factor * part.positions for factor, part in parts)
    v = sum(factor * cases.velocities(part) for factor, part in parts)
    return x, v


@both
@pytest.mark.parametrize("window", [4.0, 10.0])
def test_a_reversible_window_is_what_it_says(model, window):
    """15/8 p - 5/4 q + 3/8 r, and frames within as seen from both ends, up to rotation."""
    atoms = cases.hot("CH3CH2OH")
    got = simulate(atoms, window / 4, duration=window, model=model, window=window)
    (p,) = plain(model, atoms, window)
    (q,) = plain(model, reversed_(plain(model, reversed_(p), window)[0]), window)
    (r,) = plain(model, reversed_(plain(model, reversed_(q), window)[0]), window)
    x, v = blend(atoms, [(15 / 8, p), (-5 / 4, q), (3 / 8, r)])
    system, one = System.from_atoms(atoms), np.zeros(9, int)
    times = window / 4 * np.arange(1, 5)

    def kept(t, x, v):
        start = system.positions, system.velocities, system.masses
        there = np.array([t]), (x - atoms.positions)[None], v[None]
        change = _C.conserve(*start, *there, one, one == 0, NEWTON_STEPS)
        return atoms.positions + change[0][0], change[1][0]

    end = kept(window, x, v)
    np.testing.assert_allclose(got.positions[4], end[0], atol=1e-12)
    np.testing.assert_allclose(got.velocities[4], end[1], atol=1e-12)
    seen = plain(model, reversed_(got[4]), times[2::-1])
    for k, t in enumerate(times[:3]):
        (early,), late = plain(model, atoms, t), reversed_(seen[k])
        expected = kept(t, *blend(atoms, [(1 - t / window, early), (t / window, late)]))
        np.testing.assert_allclose(got.positions[k + 1], expected[0], atol=1e-11)
        np.testing.assert_allclose(got.velocities[k + 1], expected[1], atol=1e-11)


@pytest.mark.parametrize("window", [2.0, 5.0, 10.0])
def test_reversible_windows_run_backwards(window):
    """There and back again, what is left of the model's error is small."""
    atoms, model = cases.hot("CH3CH2OH"), gentle(**cases.OWN)
    errors = {}
    for method in ("reversible", "plain"):
        settings = {"model": model, "duration": window, "window": window, "method": method}
        there = simulate(atoms, window, **settings)[-1]
        back = simulate(reversed_(there), window, **settings)[-1]
        v = cases.velocities(back) + cases.velocities(atoms)
        errors[method] = abs(back.positions - atoms.positions).max() + window * abs(v).max()
    assert errors["reversible"] < 0.02 * errors["plain"]


def test_a_run_goes_on_with_the_map_that_it_was_begun_with(tmp_path):
    atoms = cases.hot("CH3CH2OH")
    for begun in ({"method": "plain"}, {"energy_rate": 0.02}, {}):
        path = tmp_path / f"{len(begun)}{begun.get('method')}.h5"
        settings = {"dt": 2.0, "model": OWN, "trajectory": path}
        simulate(atoms, duration=30, **settings, **begun)
        said = Trajectory.read(path).metadata
        assert ("reversible" in said) == ("method" not in begun)
        whole = simulate(atoms, 2.0, duration=60, model=OWN, **begun)
        same(simulate(atoms, duration=60, **settings, resume=True), whole)
        other = "reversible" if "method" in begun else "plain"
        with pytest.raises(ValueError, match="reversible|energy_rate_per_fs"):
            simulate(atoms, duration=90, **settings, resume=True, method=other)
    with pytest.raises(ValueError, match="energy_rate_per_fs"):
        simulate(atoms, 2.0, duration=90, model=OWN, trajectory=path, resume=True, energy_rate=0.03)
    with pytest.raises(ValueError, match="not for the plain map"):
        simulate(atoms, 2.0, duration=90, model=OWN, method="plain", energy_rate=0.03)
    for rate in (-1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="energy_rate must be"):
            simulate(atoms, 2.0, duration=90, model=OWN, energy_rate=rate)


@both
@maps
def test_momenta_are_kept(model, method):
    atoms = cases.hot("CH3CH2OH")
    atoms.set_momenta(atoms.get_momenta() + 0.3)
    t = simulate(atoms, 3.0, duration=300, model=model, method=method)
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


@both
@maps
def test_end_state_does_not_depend_on_dt(model, method):
    atoms = cases.hot("CH3CH2OH")
    ends = [
        simulate(atoms, dt, duration=60, model=model, method=method)
        for dt in (0.1, 1, 5, 7.5, 20, 60)
    ]
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


with_energies = pytest.mark.parametrize(
    "kind", [cases.POTENTIAL, cases.WINDOW_POTENTIALS], ids=["reversible", "symplectic"]
)


@with_energies
@pytest.mark.parametrize("thermostat", [None, "csvr"])
def test_potential_energies_of_frames(tmp_path, kind, thermostat):
    """The model's, of every frame of every system, in memory and in files."""
    model = gentle(**cases.OWN, **kind)
    many = [cases.hot("H2O"), cases.hot("CH3CH2OH"), cases.hot("H2O", seed=1)]
    paths = [tmp_path / f"{k}{suffix}" for k, suffix in enumerate((".h5", ".traj", ".extxyz"))]
    settings = {"thermostat": thermostat, "temperature_K": None if thermostat is None else 300}
    for atoms in many if thermostat else ():
        atoms.set_momenta(np.zeros((len(atoms), 3)))
    runs = simulate(many, 4.0, duration=50, model=model, trajectory=paths, **settings)
    for run, path in zip(runs, paths, strict=True):
        assert len(run) == 13 and run.potential_energies.dtype == np.float64
        expected = [float(model.potential_energy(System.from_atoms(atoms))) for atoms in run]
        np.testing.assert_allclose(run.potential_energies, expected, rtol=0, atol=1e-9)
        assert np.ptp(expected) > 1e-4
        same(Trajectory.read(path), run)
        assert run.trust.energies.potential == pytest.approx(np.mean(expected), abs=1e-9)
        assert run.trust.energies.drift is not None
        assert (run.heat is None) == (run.trust.energies.heat is None) == (thermostat is None)
        assert str(trust_summary(run, model.config.radial_cutoff)) == str(run.trust)
    assert simulate(many[1], 4.0, duration=8, model=OWN, **settings).potential_energies is None


@with_energies
@pytest.mark.parametrize("suffix", [".traj", ".extxyz", ".h5"])
def test_restart_is_exact_with_energies(tmp_path, suffix, kind):
    model, atoms = gentle(**cases.OWN, **kind).float(), cases.hot("CH3CH2OH")
    path = tmp_path / f"parts{suffix}"
    whole = simulate(atoms, 0.7, duration=100, model=model)
    for duration in (4.0, 37.0, 60.0, 100.0):
        last = simulate(atoms, 0.7, duration=duration, model=model, trajectory=path, resume=True)
    same(last, whole)
    same(Trajectory.read(path), whole)
    assert str(last.trust) == str(whole.trust)


@pytest.mark.parametrize("suffix", [".traj", ".extxyz", ".h5"])
def test_a_file_without_energies_goes_on_without(tmp_path, suffix):
    """Beside one that has them, in the same call."""
    model, path = gentle(**cases.OWN, **cases.WINDOW_POTENTIALS), tmp_path / f"old{suffix}"
    pair, paths = [cases.hot("H2O"), cases.hot("NH3")], [path, tmp_path / f"new{suffix}"]
    begun = simulate(pair, 2.0, duration=20, model=model, trajectory=[tmp_path / "a.h5", paths[1]])
    state = begun[0].times, begun[0].positions, begun[0].momenta
    Trajectory(begun[0].atoms, *state, begun[0].metadata).write(path)
    old, new = simulate(pair, 2.0, duration=60, model=model, trajectory=paths, resume=True)
    assert old.potential_energies is None and old.trust.energies is None
    assert len(new.potential_energies) == len(new) == len(old) == 31
    wholes = simulate(pair, 2.0, duration=60, model=model)
    for run, whole, file in zip((old, new), wholes, paths, strict=True):
        np.testing.assert_array_equal(run.positions, whole.positions)
        same(Trajectory.read(file), run)
    same(new, wholes[1])


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


def test_64_molecules_equal_64_single_runs():
    """Different molecules in one call, float32: equal to rounding."""
    model = load_model("molecules-nve")
    known = set(model.config.species)
    names = [n for n in g2.names if len(molecule(n)) > 2 and set(molecule(n).symbols) <= known]
    names = [n for n in names if not n.startswith("CH2_")]  # carbenes, strange to the model, break
    many = [cases.hot(name, seed=k, temperature_K=300) for k, name in enumerate(names[:64])]
    assert len({str(a.symbols) for a in many}) > 50 and len(many) == 64
    for atoms, together in zip(many, simulate(many, 10, duration=20, model=model), strict=True):
        alone = simulate(atoms, 10, duration=20, model=model)
        np.testing.assert_allclose(together.positions, alone.positions, atol=5e-6)
        np.testing.assert_allclose(together.velocities, alone.velocities, atol=1e-6)


def test_refused_resume_changes_no_file(tmp_path):
    pair = [cases.hot("H2O"), cases.hot("NH3")]
    paths = [tmp_path / "long.h5", tmp_path / "short.h5"]
    simulate(pair[0], 1.0, duration=50, model=OWN, trajectory=paths[0])
    simulate(pair[1], 1.0, duration=20, model=OWN, trajectory=paths[1])
    for change in ({"dt": 2.0}, {"model": PUBLISHED}):
        settings = {"dt": 1.0, "model": OWN} | change
        with pytest.raises(ValueError, match="written by another run"):
            simulate(pair, duration=60, trajectory=paths, resume=True, **settings)
    assert [len(Trajectory.read(path)) for path in paths] == [51, 21]
    both = simulate(pair, 1.0, duration=60, model=OWN, trajectory=paths, resume=True)
    for atoms, path, trajectory in zip(pair, paths, both, strict=True):
        whole = simulate(atoms, 1.0, duration=60, model=OWN)
        np.testing.assert_allclose(trajectory.positions, whole.positions, atol=1e-10)
        same(Trajectory.read(path), trajectory)


def test_resume_begins_where_there_is_nothing(tmp_path):
    pair = [cases.hot("H2O"), cases.hot("NH3")]
    paths = [tmp_path / "a.extxyz", tmp_path / "b.h5"]
    paths[0].touch()  # a run that was killed before its first frame
    first = simulate(pair, 1.0, duration=20, model=OWN, trajectory=paths, resume=True)
    for a, b in zip(first, simulate(pair, 1.0, duration=20, model=OWN), strict=True):
        same(a, b)
    with pytest.raises(ValueError, match="resume needs"):
        simulate(pair[0], 1.0, duration=20, model=OWN, resume=True)
    short = simulate(pair, 1.0, duration=5, model=OWN, trajectory=paths, resume=True)
    assert [len(t) for t in short] == [6, 6]


def test_resume_remembers_lonely_atoms(tmp_path):
    atoms = cases.hot("H2O") + ase.Atoms("H", positions=[[0, 0, 30.0]])
    path = tmp_path / "a.h5"
    first = simulate(atoms, 1.0, duration=20, model=OWN, trajectory=path)
    assert first.trust.lonely_atoms == (3,)
    again = simulate(atoms, 1.0, duration=20, model=OWN, trajectory=path, resume=True)
    assert again.trust.lonely_atoms == (3,)


def test_thirds_of_a_femtosecond_resume_at_the_last_window(tmp_path, monkeypatch):
    atoms, path = cases.hot("H2O"), tmp_path / "a.h5"
    simulate(atoms, 1 / 3, duration=50, model=OWN, trajectory=path)
    starts = []

    def watched(*args, start, **kwargs):
        starts.append(start)
        return rollout(*args, start=start, **kwargs)

    monkeypatch.setattr(simulation, "rollout", watched)
    simulate(atoms, 1 / 3, duration=70, model=OWN, trajectory=path, resume=True)
    assert starts == [5]


def test_nothing_is_written_before_all_is_checked(tmp_path):
    pair = [cases.hot("H2O"), cases.hot("NH3")]
    new, old = tmp_path / "new.h5", tmp_path / "old.h5"
    old.touch()
    with pytest.raises(FileExistsError, match="old.h5"):
        simulate(pair, 1.0, duration=20, model=OWN, trajectory=[new, old])
    with pytest.raises(ValueError, match="file of its own"):
        simulate(pair, 1.0, duration=20, model=OWN, trajectory=[new, new])
    with pytest.raises(FileNotFoundError, match="no folder"):
        simulate(pair[0], 1.0, duration=20, model=OWN, trajectory=tmp_path / "x" / "a.h5")
    pair[1].positions[1] = pair[1].positions[0]
    with pytest.raises(ValueError, match="system 1"):
        simulate(pair, 1.0, duration=20, model=OWN, trajectory=[new, tmp_path / "b.h5"])
    assert [p.name for p in tmp_path.iterdir()] == ["old.h5"]
    with pytest.raises(TypeError, match="expected ase.Atoms"):
        simulate("ethanol", 1.0, duration=20, model=OWN)


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
    for kelvin in (-5, 0, np.nan, np.inf, 3e5):
        with pytest.raises(ValueError, match="temperature_K must be positive and at most 20000 K"):
            simulate(cold, 1.0, duration=10, model=OWN, temperature_K=kelvin)


@pytest.mark.parametrize(
    "settings",
    [
        *({"dt": dt} for dt in (0.0, -1.0, 30.0, np.nan)),
        *({"window": window} for window in (0.0, 11.0)),
        *({"equilibration": fs} for fs in (-5.0, np.nan)),
        {"duration": 1e13},
        {"seed": -1, "temperature_K": 300},
    ],
)
def test_bad_settings_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        simulate(cases.hot("H2O"), **({"duration": 20.0, "model": OWN} | settings))


def test_times_are_those_that_were_meant(tmp_path):
    settings = {"model": OWN, "trajectory": tmp_path / "run.h5"}
    run = simulate(cases.hot("H2O"), 0.3, duration=3 * 0.3, **settings)
    assert len(run) == len(Trajectory.read(tmp_path / "run.h5")) == 4
    with pytest.raises(ValueError, match="1e-07 fs is below the shortest"):
        simulate(cases.hot("H2O"), 1e-7, model=OWN)


def test_iterators_of_atoms_and_any_seed():
    names = "H2O", "NH3"
    settings = {"duration": 5, "model": OWN, "temperature_K": 300}
    runs = simulate((molecule(name) for name in names), **settings)
    assert [len(run.atoms) for run in runs] == [3, 4]
    a, b = (simulate(molecule("H2O"), seed=None, **settings) for _ in range(2))
    assert abs(a.momenta - b.momenta).max() > 0


def test_atoms_closer_than_bonds_are_warned_of():
    near = cases.hot("H2O")
    near.positions[2] = near.positions[1] + [0, 0, 0.3]
    said = "atoms H 1 and H 2 of system 1 are 0.30 Å apart"
    with pytest.warns(RuntimeWarning, match=said):
        runs = simulate([cases.hot("NH3"), near], duration=1, model=OWN)
    assert not runs[0].trust.warnings
    assert any("H 1 and H 2 of system 0 are 0.30 Å" in said for said in runs[1].trust.warnings)
    with pytest.warns(RuntimeWarning, match="0.30 Å apart"):
        MDtrajNetDynamics(near, 1.0, model=OWN)
    box = ase.Atoms("CO", positions=[[0.1, 5, 5], [9.7, 5, 5]], cell=[10, 10, 10], pbc=True)
    with pytest.warns(RuntimeWarning, match="C 0 and O 1 of system 0 are 0.40 Å apart"):
        simulate(box, duration=1, model=OWN, temperature_K=300)


def test_sites_that_are_occupied_in_part_are_refused(tmp_path):
    crystal = ase.Atoms("CO", positions=[[1, 1, 1], [2.2, 1, 1]], cell=[9, 9, 9], pbc=True)
    file = tmp_path / "crystal.cif"
    crystal.write(file)
    simulate(ase.io.read(file), duration=1, model=OWN, temperature_K=300)
    text = file.read_text()
    assert text.count("1.0000\n") == 2  # of the occupancies
    file.write_text(text.replace("1.0000\n", "0.5000\n", 1))
    with pytest.raises(ValueError, match="a site that is occupied in part"):
        simulate(ase.io.read(file), duration=1, model=OWN, temperature_K=300)


def test_isotopes():
    light = cases.hot("H2O")
    heavy = light.copy()
    heavy.set_masses([15.999, 2.014, 2.014])
    heavy.set_velocities(light.get_velocities())
    calls = [
        lambda: simulate([light, heavy], model=OWN),
        lambda: MDtrajNetDynamics(heavy, 1.0, model=OWN),
        lambda: OWN.predict([light, heavy], 1.0),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"atom 1 of system \d, H, has the mass 2.014 amu"):
            call()
    with pytest.raises(ValueError, match="got 'own'"):
        simulate(light, model=OWN, masses="own")
    run, other = (
        simulate(atoms, duration=20, model=OWN, masses="standard") for atoms in (heavy, light)
    )
    np.testing.assert_allclose(run.positions, other.positions, atol=1e-9)
    assert heavy.get_masses()[1] == 2.014
    light.set_masses("most_common")  # 1.0078 amu of H: what many programs say
    simulate(light, duration=1, model=OWN)


def test_what_atoms_say_is_not_passed_over():
    settings = {"duration": 5, "model": OWN}
    ion = cases.hot("NH3")
    ion.info["charge"] = 1
    with pytest.raises(ValueError, match=r'info\["charge"\] is 1; models know neutral'):
        simulate(ion, **settings)
    ion.info["charge"] = 0
    ion.set_initial_charges([0.1, 0.3, 0.3, 0.3])
    with pytest.raises(ValueError, match="the sum of its initial charges is 1"):
        simulate(ion, **settings)
    ion.set_initial_charges([-0.8, 0.3, 0.3, 0.3])  # of a force field, rounded
    for radical in ("OH", "O2", "CH3"):
        with pytest.raises(ValueError, match="[12] unpaired electrons, as the sum of"):
            simulate(molecule(radical), temperature_K=300, **settings)
    ion.info["multiplicity"] = 3
    with pytest.raises(ValueError, match=r'has 2 unpaired electrons, as info\["multiplicity"\]'):
        simulate(ion, **settings)
    ion.info["multiplicity"] = 1
    ion.set_constraint(FixAtoms([]))  # as ASE reads a coord file of Turbomole
    simulate(ion, **settings)
    cold = molecule("NH3")
    cold.set_array("vel", np.ones((4, 3)))
    with pytest.raises(ValueError, match="array 'vel' that looks like velocities"):
        simulate(cold, **settings)
    simulate(cold, temperature_K=300, **settings)


@pytest.mark.parametrize("kind", [RolloutError, Broke])
def test_errors_reach_other_processes(kind):
    state = np.ones((3, 3)), np.zeros((3, 3))
    error = kind("why", 1, *state) if kind is Broke else kind("why", 1, 2, *state, Kept.nothing(2))
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == "why" and vars(again).keys() == vars(error).keys()
    for name, value in vars(error).items():
        np.testing.assert_equal(getattr(again, name), value)


@pytest.mark.parametrize("duration", [40.0, 41.0])
def test_frames_that_are_not_kept(tmp_path, duration, monkeypatch):
    """They are in the file and in the trust summary; the last one is returned."""
    monkeypatch.setattr(simulation, "FRAME_ROWS", 20)
    many, files = [cases.hot("CH3CH2OH"), cases.hot("H2O")], [tmp_path / "a.h5", tmp_path / "b.h5"]
    whole = simulate(many, 2.0, duration=duration, model=OWN)
    last = simulate(many, 2.0, duration=duration, model=OWN, trajectory=files, keep=False)
    for one, other, path in zip(last, whole, files, strict=True):
        assert len(one) == 1 and one.times[0] == 40.0 and str(one.trust) == str(other.trust)
        same(one, other[-1:])
        same(Trajectory.read(path), other)
    longer = {"trajectory": files, "resume": True, "keep": False}
    resumed = simulate(many, 2.0, duration=60.0, model=OWN, **longer)
    same(resumed[0], simulate(many, 2.0, duration=60.0, model=OWN)[0][-1:])
    with pytest.raises(ValueError, match="trajectory files"):
        simulate(many, 2.0, duration=10, model=OWN, keep=False)


@pytest.mark.parametrize("suffix", [".traj", ".extxyz", ".h5"])
def test_what_describes_the_atoms_goes_along(tmp_path, suffix):
    atoms = cases.hot("H2O")
    atoms.set_tags([1, 2, 2])
    atoms.info["name"] = "w1"
    path = tmp_path / f"a{suffix}"
    simulate(atoms, 1.0, duration=5, model=OWN, trajectory=path)
    bare = cases.hot("H2O")
    for frames in (
        simulate(atoms, 1.0, duration=5, model=OWN),
        simulate(bare, 1.0, duration=9, model=OWN, trajectory=path, resume=True),
        Trajectory.read(path)[2:4],
    ):
        assert list(frames[-1].get_tags()) == [1, 2, 2] and frames[-1].info["name"] == "w1"


def test_more_files_than_descriptors(tmp_path):
    many = [cases.hot("H2O", seed=k) for k in range(40)]
    paths = [tmp_path / f"{k}.traj" for k in range(40)]
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, before[1]))
    try:
        frames = simulate(many, 2.0, duration=20, model=OWN, trajectory=paths)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    same(Trajectory.read(paths[-1]), frames[-1])
    assert len(list(tmp_path.iterdir())) == 40


def test_unknown_element_is_refused_before_the_run(tmp_path):
    atoms = ase.Atoms("CSi", positions=[[0, 0, 0], [0, 0, 1.8]])
    atoms.set_momenta([[0, 0, 1.0], [0, 0, -1.0]])
    with pytest.raises(ValueError, match="Si"):
        simulate(atoms, 1.0, duration=10, model=OWN, trajectory=tmp_path / "a.h5")
    assert not (tmp_path / "a.h5").exists()


def throws_away(monkeypatch, after, atom, by=10.0, systems_of=0):
    """From so many predictions on, the torch engine's model throws an atom away.

    Of batches of more than systems_of atoms.
    """
    calls, predicted = [], TorchPredictor.tensors

    def breaks(self, graph, times):
        calls.append(times)
        moved, velocity = predicted(self, graph, times)
        if len(calls) > after and graph.atoms > systems_of:
            moved[:, atom] += by
        return moved, velocity

    monkeypatch.setattr(TorchPredictor, "tensors", breaks)


def in_torch(model):
    model.backend = "reference"
    return model


# The window in which gentle(0.6, **OWN) throws ethanol's atom 3 away.
WILD = {"reversible": 83, "plain": 75}


@maps
@pytest.mark.parametrize("breakdown", [np.nan, 10.0])
def test_broken_trajectory_keeps_its_frames(tmp_path, monkeypatch, breakdown, method):
    """A model that throws an atom away stops the run; the windows before are in the file."""
    atoms, path, model = cases.hot("CH3CH2OH"), tmp_path / "a.h5", in_torch(gentle(**cases.OWN))
    whole = simulate(atoms, 1.0, duration=20, model=model, method=method)
    throws_away(monkeypatch, 2 * PREDICTIONS[method], 4, breakdown)
    with pytest.raises(RolloutError, match="broke before 30 fs: atom 4 leaves"):
        simulate(atoms, 1.0, duration=100, model=model, trajectory=path, method=method)
    same(Trajectory.read(path), whole)


@maps
@pytest.mark.parametrize("dt", [2.0, 50.0])
def test_broken_trajectory_keeps_its_frames_natively(tmp_path, method, dt):
    """Also where many windows are one call, of which some were good."""
    atoms, path, model = cases.hot("CH3CH2OH"), tmp_path / "a.h5", gentle(0.6, **cases.OWN)
    end = 10 * WILD[method]
    settings = {"model": model, "method": method}
    with pytest.raises(RolloutError, match=f"broke before {end + 10} fs: atom 3 leaves") as caught:
        simulate(atoms, dt, duration=2000, trajectory=path, **settings)
    whole = simulate(atoms, 10.0, duration=end, **settings)
    np.testing.assert_array_equal(caught.value.positions, whole.positions[-1])
    np.testing.assert_array_equal(caught.value.momenta, whole.momenta[-1])
    same(Trajectory.read(path), simulate(atoms, dt, duration=end, **settings))


@maps
def test_others_go_on_when_one_breaks(monkeypatch, method):
    many = [cases.hot("CO2"), cases.hot("CH3CH2OH"), cases.hot("NH3")]
    model = in_torch(gentle(**cases.OWN))
    alone = [simulate(x, 1.0, duration=60, model=model, method=method) for x in many]
    throws_away(monkeypatch, 2 * PREDICTIONS[method], 5, systems_of=7)  # ethanol's atom 2
    with pytest.warns(RuntimeWarning, match="system 1: the trajectory broke before 30 fs: atom 2"):
        done = simulate(many, 1.0, duration=60, model=model, method=method)
    assert [t.times[-1] for t in done] == [60, 20, 60]
    assert "broke before 30 fs" in done[1].trust.warnings[0]
    for k in (0, 2):
        np.testing.assert_allclose(done[k].positions, alone[k].positions, atol=1e-9)


@maps
@pytest.mark.parametrize("dt", [2.0, 50.0])
def test_others_go_on_natively_when_one_breaks(method, dt):
    """To the bit, as if they had been alone."""
    many = [cases.hot("CO2"), cases.hot("CH3CH2OH"), cases.hot("NH3")]
    settings = {"duration": 900, "model": gentle(0.6, **cases.OWN), "method": method}
    end = 10 * WILD[method]
    with pytest.warns(RuntimeWarning, match=f"broke before {end + 10} fs: atom 3 leaves"):
        done = simulate(many, dt, **settings)
    assert [t.times[-1] for t in done] == [900, dt * (end // dt), 900]
    for k in (0, 2):
        same(done[k], simulate(many[k], dt, **settings))


def test_window():
    atoms = cases.hot("CH3CH2OH")
    settings = {"duration": 20, "model": OWN, "method": "plain"}
    short = simulate(atoms, 1.0, window=5.0, **settings)
    long = simulate(atoms, 1.0, **settings)
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
    state = atoms.positions.copy(), atoms.get_momenta()
    atoms.set_masses(1.01 * atoms.get_masses())
    fresh = atoms.copy()
    dynamics.run(1)
    MDtrajNetDynamics(fresh, 1.0 * ase.units.fs, model=OWN).run(1)
    np.testing.assert_array_equal(atoms.positions, fresh.positions)
    assert abs(state[0] - atoms.positions).max() > 0
    atoms.set_masses(2 * atoms.get_masses())
    with pytest.raises(ValueError, match="cannot tell isotopes"):
        dynamics.run(1)
    fresh.set_constraint(FixAtoms([0]))
    with pytest.raises(ValueError, match="constraints"):
        MDtrajNetDynamics(fresh, 1.0, model=OWN)
    with pytest.raises(ValueError, match="at rest"):
        MDtrajNetDynamics(ase.Atoms("CO", positions=[[0, 0, 0], [0, 0, 1]]), 1.0, model=OWN)


def test_ase_dynamics_goes_on_after_ctrl_c(monkeypatch):
    atoms = cases.hot("CH3CH2OH")
    dynamics = MDtrajNetDynamics(atoms, 1.0 * ase.units.fs, model=OWN, window=2.0)
    original = ase_dynamics.rollout

    def interrupted(*arguments, **settings):
        yield next(original(*arguments, **settings))
        raise KeyboardInterrupt

    monkeypatch.setattr(ase_dynamics, "rollout", interrupted)
    with pytest.raises(KeyboardInterrupt):
        dynamics.run(5)
    monkeypatch.undo()
    assert dynamics.nsteps == 2
    expected = simulate(atoms, 1.0, duration=3, model=OWN, window=2.0)
    dynamics.run(3)
    np.testing.assert_array_equal(atoms.positions, expected.positions[3])


@pytest.mark.parametrize("shift", [0.0, 5.9])
def test_ase_observers_that_wrap_change_nothing(shift):
    """Last bits, and images: the motion is that without the observer."""
    atoms = cases.hot("CH3CH2OH")
    atoms.set_cell([[12, 0, 0], [3, 12, 0], [0, 1, 12]])
    atoms.pbc = True
    atoms.positions += shift  # at 5.9, over an edge
    free, wrapped = atoms.copy(), atoms.copy()
    MDtrajNetDynamics(free, 1.0 * ase.units.fs, model=OWN).run(30)
    dynamics = MDtrajNetDynamics(wrapped, 1.0 * ase.units.fs, model=OWN)
    dynamics.attach(wrapped.wrap)
    dynamics.run(30)
    np.testing.assert_allclose(wrapped.get_momenta(), free.get_momenta(), atol=1e-12)
    free.wrap()
    np.testing.assert_allclose(wrapped.positions, free.positions, atol=1e-9)
    wrapped.set_constraint(FixAtoms([0]))
    with pytest.raises(ValueError, match="constraints"):
        dynamics.run(1)
