"""Thermostats: the canonical distribution, what they leave alone, and runs that go on."""

import dataclasses

import ase
import cases
import numpy as np
import pytest
from ase.units import fs, kB
from cases import gentle

from mdtrajnet_fast import MDtrajNetDynamics, Trajectory, load_model, simulate
from mdtrajnet_fast.analysis.trust import TrustMonitor
from mdtrajnet_fast.md.rollout import RolloutError, potential_energies, rollout
from mdtrajnet_fast.md.thermostats import CSVR, Baths, Langevin
from mdtrajnet_fast.mechanics import (
    InternalMotion,
    degrees_of_freedom,
    kinetic_temperature,
    thermal_velocities,
    total_angular_momentum,
    total_momentum,
)
from mdtrajnet_fast.system import System

MODEL = gentle(**cases.OWN, **cases.WINDOW_POTENTIALS)
BOTH = pytest.mark.parametrize("thermostat", ["langevin", "csvr"])


@pytest.mark.parametrize("thermostat", [Langevin(400.0, 0.2), CSVR(400.0, 5.0)], ids=str)
@pytest.mark.parametrize("name", ["CH3CH2OH", "H2O", "diamond"])
def test_kinetic_energies_are_canonical(thermostat, name):
    """Of atoms that nothing else moves: the gamma distribution of f / 2 degrees of freedom."""
    atoms = cases.diamond((1, 1, 1)) if name == "diamond" else cases.hot(name)
    thermal_velocities(atoms, 100.0, 3)
    freedom, baths = degrees_of_freedom(atoms), Baths([thermostat], [atoms], [11])
    p, kinetic = atoms.get_momenta(), []
    for number in range(6000):
        p = baths.before(number, 3.0, atoms.positions, p)
        p = baths.after(number, 3.0, atoms.positions, p)
        kinetic.append(0.5 * (p**2 / atoms.get_masses()[:, None]).sum())
    kinetic = np.array(kinetic[500:]) / (kB * 400.0)
    assert kinetic.mean() == pytest.approx(freedom / 2, rel=0.04)
    assert kinetic.var() == pytest.approx(freedom / 2, rel=0.2)


@BOTH
def test_rigid_motion_is_left_alone(thermostat):
    atoms = cases.hot("CH3CH2OH")
    atoms.set_momenta(atoms.get_momenta() + 0.3 * atoms.get_masses()[:, None])
    t = simulate(atoms, 3.0, duration=300, model=MODEL, thermostat=thermostat, temperature_K=500)
    moving = simulate(atoms, 3.0, duration=300, model=MODEL, thermostat=CSVR(500.0))
    for run in (t, moving):
        for of in (
            total_momentum(run.velocities, atoms.get_masses()),
            total_angular_momentum(run.positions, run.velocities, atoms.get_masses()),
        ):
            np.testing.assert_allclose(of, of[:1].repeat(len(of), 0), atol=1e-9)
    assert abs(total_momentum(moving.velocities, atoms.get_masses())[0]).max() > 0.1


@BOTH
@pytest.mark.parametrize("method", ["symplectic", "reversible"])
def test_runs_go_on_and_do_not_depend_on_others(tmp_path, thermostat, method):
    many = [cases.hot("CH3CH2OH"), cases.hot("H2O")]
    window = 3.0 if method == "symplectic" else 10.0
    settings = {
        "dt": window / 2,
        "model": MODEL,
        "method": method,
        "thermostat": thermostat,
        "temperature_K": 300.0,
    }
    whole = simulate(many, duration=60, **settings)
    paths = [tmp_path / "a.h5", tmp_path / "b.traj"]
    simulate(many, duration=25, **settings, trajectory=paths)
    parts = simulate(many, duration=60, **settings, trajectory=paths, resume=True)
    alone = simulate(many[1], duration=60, **settings, seed=1)
    for a, b in ((whole[0], parts[0]), (whole[1], parts[1]), (whole[1], alone)):
        np.testing.assert_array_equal(a.positions, b.positions)
        np.testing.assert_array_equal(a.momenta, b.momenta)
    other = simulate(many, duration=60, **settings, seed=5)
    assert abs(other[0].positions[-1] - whole[0].positions[-1]).max() > 1e-3
    del settings["thermostat"]
    with pytest.raises(ValueError, match="thermostat"):
        simulate(many, duration=90, **settings, trajectory=paths, resume=True)


def test_temperatures_of_a_batch():
    many = [cases.hot("CH3CH2OH") for _ in range(2)]
    runs = simulate(
        many, 3.0, duration=6000, model=MODEL, thermostat=[Langevin(200.0, 0.05), CSVR(600.0, 20.0)]
    )
    for run, kelvin in zip(runs, (200.0, 600.0), strict=True):
        t = kinetic_temperature(run.velocities[500:], run.atoms.get_masses(), 21)
        assert t.mean() == pytest.approx(kelvin, rel=0.15)


def kinetic(momenta, masses):
    return 0.5 * (momenta**2 / masses[:, None]).sum((-1, -2))


@pytest.mark.parametrize("thermostat", [Langevin(400.0, 0.1), CSVR(400.0, 10.0)], ids=str)
def test_heat_is_what_thermostats_put_in(thermostat):
    """The changes that they make to the kinetic energy, of molecules that fly and turn as well."""
    many = [cases.hot("CH3CH2OH"), cases.hot("H2O", temperature_K=100.0)]
    many[0].set_momenta(many[0].get_momenta() + 0.3 * many[0].get_masses()[:, None])
    system, p = cases.state(many)
    baths, x, put_in = Baths([thermostat] * 2, many, [1, 2]), system.positions, np.zeros(2)
    for number in range(20):
        for act in (baths.before, baths.after):
            changed = act(number, 3.0, x, p)
            for k, part in enumerate((slice(0, 9), slice(9, 12))):
                masses = system.masses[part]
                put_in[k] += kinetic(changed[part], masses) - kinetic(p[part], masses)
            p = changed
    np.testing.assert_allclose(baths.heat, put_in, rtol=1e-10, atol=1e-10)
    assert abs(baths.heat).min() > 0.01
    with pytest.raises(ValueError, match="2 systems"):
        Baths([thermostat] * 2, many, [1, 2], heat=[0.0])


@BOTH
def test_energy_less_heat_is_conserved(thermostat):
    """With the bundled potentials: heat comes and goes, and its sum explains the total energy."""
    atoms = cases.hot("CH3CH2OH", temperature_K=100.0)
    bath = {"langevin": Langevin(500.0, 0.05), "csvr": CSVR(500.0, 20.0)}[thermostat]
    model = load_model("molecules-nve", dtype="float64")
    baths = Baths([bath], [atoms], [4])
    frames = list(rollout(model, *cases.state(atoms), dt=3.0, duration=1500, baths=baths))
    x, p, heat = (
        np.concatenate([getattr(f, n) for f in frames]) for n in ("positions", "momenta", "heat")
    )
    total = potential_energies(model, atoms, x) + kinetic(p, atoms.get_masses())
    assert heat.shape == (500, 1) and np.ptp(total) > 0.6
    assert np.std(total - heat[:, 0]) < 0.1 * np.std(total)
    assert abs(np.mean((total - heat[:, 0])[400:] - (total - heat[:, 0])[:100])) < 0.03


@BOTH
def test_heat_goes_on_to_the_bit(thermostat):
    """From frames that are ends of windows; and those within have what was put in before them."""
    atoms = cases.hot("CH3CH2OH")
    bath = {"langevin": Langevin(300.0), "csvr": CSVR(300.0)}[thermostat]
    system, p = cases.state(atoms)
    settings = {"dt": 1.5, "duration": 60}
    whole = list(rollout(MODEL, system, p, **settings, baths=Baths([bath], [atoms], [4])))
    middle = whole[9]
    go_on = dataclasses.replace(system, positions=middle.positions[-1])
    baths = Baths([bath], [atoms], [4], heat=middle.heat[-1])
    rest = list(rollout(MODEL, go_on, middle.momenta[-1], **settings, start=10, baths=baths))
    assert len(rest) == 10
    for a, b in zip(whole[10:], rest, strict=True):
        np.testing.assert_array_equal(a.heat, b.heat)
        np.testing.assert_array_equal(a.momenta, b.momenta)
        assert a.heat.shape == (2, 1) and (a.heat[0] != a.heat[1]).all()
    np.testing.assert_array_equal(baths.heat, whole[-1].heat[-1])
    assert whole[0].heat is not None
    (free, *_) = rollout(MODEL, system, p, dt=3.0, duration=6)
    assert free.heat is None


@BOTH
@pytest.mark.parametrize("suffix", [".traj", ".extxyz", ".h5"])
def test_heat_of_runs_that_stop(tmp_path, suffix, thermostat):
    """To the bit that of a run without the stops, which end within windows, too."""
    many = [cases.hot("CH3CH2OH"), cases.hot("H2O")]
    paths = [tmp_path / f"{k}{suffix}" for k in range(2)]
    settings = {"model": MODEL, "thermostat": thermostat, "temperature_K": [300.0, 500.0]}
    for atoms in many:
        atoms.set_momenta(np.zeros((len(atoms), 3)))
    wholes = simulate(many, 2.0, duration=90, **settings, equilibration=30.0)
    for duration in (4.0, 40.0, 62.0, 90.0):
        runs = simulate(
            many,
            2.0,
            duration=duration,
            **settings,
            equilibration=30.0,
            trajectory=paths,
            resume=True,
        )
    for run, whole, path in zip(runs, wholes, paths, strict=True):
        assert whole.heat[0] == 0 and len(np.unique(whole.heat)) > 25
        for held in (run, Trajectory.read(path)):
            np.testing.assert_array_equal(held.positions, whole.positions)
            np.testing.assert_array_equal(held.heat, whole.heat)
        np.testing.assert_array_equal(whole.conserved_energies, whole.total_energies - whole.heat)
        assert str(run.trust) == str(whole.trust)
        assert f"{whole.heat[-1]:+.3f} eV by the end; drift of the total energy less heat" in str(
            run.trust
        )
    bath = {"langevin": Langevin(500.0), "csvr": CSVR(500.0)}[thermostat]
    start = cases.state(whole[0])
    windows = rollout(MODEL, *start, dt=2.0, duration=90, baths=Baths([bath], [whole[0]], [1]))
    heat = np.concatenate([[0.0], *(frames.heat[:, 0] for frames in windows)])
    np.testing.assert_allclose(whole.heat, heat, rtol=0, atol=1e-9)


@pytest.mark.parametrize("suffix", [".traj", ".extxyz", ".h5"])
def test_a_file_without_heat_goes_on_without(tmp_path, suffix):
    """Beside one that has it, in the same call; drift is not known of it."""
    pair, paths = [cases.hot("H2O"), cases.hot("NH3")], [tmp_path / f"{k}{suffix}" for k in "ab"]
    settings = {"model": MODEL, "thermostat": CSVR(300.0)}
    begun = simulate(pair, 3.0, duration=15, **settings, trajectory=[tmp_path / "new.h5", paths[1]])
    state = begun[0].times, begun[0].positions, begun[0].momenta
    old = Trajectory(begun[0].atoms, *state, begun[0].metadata, begun[0].potential_energies)
    old.write(paths[0])
    runs = simulate(pair, 3.0, duration=60, **settings, trajectory=paths, resume=True)
    wholes = simulate(pair, 3.0, duration=60, **settings)
    for run, whole in zip(runs, wholes, strict=True):
        np.testing.assert_array_equal(run.positions, whole.positions)
        np.testing.assert_array_equal(run.potential_energies, whole.potential_energies)
    assert runs[0].heat is Trajectory.read(paths[0]).heat is runs[0].conserved_energies is None
    assert runs[0].trust.energies.drift is runs[0].trust.energies.heat is None
    np.testing.assert_array_equal(runs[1].heat, wholes[1].heat)
    np.testing.assert_array_equal(Trajectory.read(paths[1]).heat, wholes[1].heat)


def test_a_window_that_breaks_gives_no_heat():
    broken = cases.meets(gentle(**cases.OWN, **cases.WINDOW_POTENTIALS))
    model = gentle(**cases.OWN, **cases.WINDOW_POTENTIALS)
    cases.meets(model)
    many = [broken, cases.hot("H2O")]
    baths, heat = Baths([Langevin(300.0, 1e-3)] * 2, many, [1, 2]), None
    with pytest.raises(RolloutError):
        for frames in rollout(model, *cases.state(many), dt=3.0, duration=900, baths=baths):
            heat = frames.heat[-1]
    np.testing.assert_array_equal(baths.heat, heat)


def test_temperatures_of_systems():
    """One for each: velocities are drawn and thermostats are at them, as in runs of their own."""
    many = [cases.hot("CH3CH2OH"), cases.hot("H2O")]
    settings = {"dt": 3.0, "duration": 30, "model": MODEL, "thermostat": "csvr"}
    runs = simulate(many, **settings, temperature_K=[200.0, 600.0])
    drawn = simulate(many, 3.0, duration=3, model=MODEL, temperature_K=np.array([200.0, 600.0]))
    for k, (kelvin, freedom) in enumerate(((200.0, 21), (600.0, 3))):
        alone = simulate(many[k], **settings, temperature_K=kelvin, seed=k)
        np.testing.assert_array_equal(runs[k].momenta, alone.momenta)
        assert runs[k].metadata["temperature_K"] == kelvin
        start = kinetic_temperature(drawn[k].velocities[:1], many[k].get_masses(), freedom)
        assert start[0] == pytest.approx(kelvin)


def test_equilibration():
    """Frame 0 is as warm as asked for, in kinetic and potential energy."""
    atoms = cases.hot("CH3CH2OH")
    atoms.set_momenta(np.zeros((9, 3)))
    settings = {"dt": 3.0, "model": MODEL, "temperature_K": 300.0}
    cold = simulate(atoms, duration=30, **settings)
    warm = simulate(atoms, duration=30, **settings, equilibration=300.0)
    assert abs(warm.positions[0] - cold.positions[0]).max() > 0.01
    assert len(warm) == len(cold) and warm.times[0] == 0
    again = simulate(atoms, duration=30, **settings, equilibration=300.0)
    np.testing.assert_array_equal(again.positions, warm.positions)
    np.testing.assert_allclose(total_momentum(warm.velocities, atoms.get_masses()), 0, atol=1e-10)


@BOTH
def test_ase_dynamics_is_simulate(thermostat):
    """To the bit, and with the heat that makes the total energy less it a constant."""
    atoms = cases.hot("CH3CH2OH")
    settings = {"model": MODEL, "thermostat": thermostat, "temperature_K": 400.0, "seed": 3}
    expected = simulate(atoms, 1.5, duration=60, **settings)
    dynamics = MDtrajNetDynamics(atoms, 1.5 * fs, **settings)
    heat = []
    dynamics.attach(lambda: heat.append(dynamics.heat))
    np.testing.assert_array_equal(atoms.get_momenta(), expected.momenta[0])
    dynamics.run(40)
    np.testing.assert_array_equal(atoms.positions, expected.positions[-1])
    np.testing.assert_array_equal(atoms.get_momenta(), expected.momenta[-1])
    baths = Baths([dynamics.thermostat], [expected[0]], [3])
    start = System.from_atoms(expected[0]), expected.momenta[0]
    found = [f.heat[:, 0] for f in rollout(MODEL, *start, dt=1.5, duration=60, baths=baths)]
    np.testing.assert_array_equal(heat, np.concatenate([[0.0], *found]))
    np.testing.assert_array_equal(heat, expected.heat)
    free = MDtrajNetDynamics(atoms, 1.5 * fs, model=MODEL)
    free.run(4)
    assert free.heat == 0.0


def test_ase_dynamics_after_observers():
    """New windows draw new random numbers, and the heat is summed on."""
    atoms = cases.hot("CH3CH2OH")
    dynamics = MDtrajNetDynamics(atoms, 3 * fs, model=MODEL, thermostat=Langevin(400.0, 0.1))
    start = atoms.copy()
    dynamics.run(2)
    first, heat = atoms.get_momenta(), dynamics.heat
    atoms.positions = start.positions
    atoms.set_momenta(start.get_momenta())
    dynamics.run(2)
    assert abs(atoms.get_momenta() - first).max() > 0.01
    baths = Baths([dynamics.thermostat], [start], [0], stage=2, heat=[heat])
    *_, last = rollout(MODEL, *cases.state(start), dt=3.0, duration=6, baths=baths)
    np.testing.assert_array_equal(atoms.get_momenta(), last.momenta[-1])
    assert dynamics.heat == last.heat[-1, 0] != heat != 0


def test_ase_dynamics_draws_velocities():
    atoms = cases.hot("CH3CH2OH")
    given = atoms.get_momenta()
    MDtrajNetDynamics(atoms, 3 * fs, model=MODEL, thermostat=CSVR(250.0))
    np.testing.assert_array_equal(atoms.get_momenta(), given)
    for settings in ({"temperature_K": 250.0}, {"thermostat": CSVR(250.0)}):
        atoms.set_momenta(np.zeros((9, 3)))
        MDtrajNetDynamics(atoms, 3 * fs, model=MODEL, **settings, seed=None)
        velocities = cases.velocities(atoms)[None]
        assert kinetic_temperature(velocities, atoms.get_masses(), 21) == pytest.approx(250.0)
    for settings, match in (
        ({"thermostat": "nose"}, "langevin, csvr"),
        ({"thermostat": "csvr"}, "temperature_K"),
        ({"temperature_K": 0.0}, "temperature_K must be positive"),
    ):
        with pytest.raises(ValueError, match=match):
            MDtrajNetDynamics(atoms, 3 * fs, model=MODEL, **settings)


def test_energy_after_equilibration():
    """Is the mean of the thermostat in every run, also where a small molecule has more than that as
    potential energy in the end."""
    atoms, count = cases.hot("H2O"), 24
    many = [atoms.copy() for _ in range(count)]
    for k, one in enumerate(many):
        thermal_velocities(one, 300.0, k)
    bath = Baths([Langevin(300.0)] * count, many, range(count), stage=1)
    frames = list(rollout(MODEL, *cases.state(many), dt=3.0, duration=300, baths=bath))
    x = np.stack([f.positions[-1] for f in frames[25:]]).reshape(75, count, 3, 3)
    runs = simulate(many, 3.0, duration=3, model=MODEL, temperature_K=300.0, equilibration=300.0)
    beyond = 0
    for k, run in enumerate(runs):
        potential = potential_energies(MODEL, atoms, x[:, k])
        wanted = potential.mean() + 1.5 * kB * 300.0
        beyond += potential[-1] > wanted
        found = potential_energies(MODEL, atoms, run.positions[:1])[0]
        found += kinetic(InternalMotion(run[0]).of(run.momenta[0]), atoms.get_masses())
        assert found == pytest.approx(wanted, abs=1e-9)
    assert beyond


def test_the_others_go_on_with_theirs():
    model = gentle(**cases.OWN, **cases.WINDOW_POTENTIALS)
    broken = cases.meets(model)
    broken.set_momenta(10 * broken.get_momenta())
    settings = {"dt": 3.0, "duration": 300, "model": model, "thermostat": CSVR(300.0, 1e6)}
    with pytest.warns(RuntimeWarning, match="system 0: the trajectory broke"):
        done = simulate([broken, cases.hot("H2O")], **settings)
    alone = simulate(cases.hot("H2O"), **settings, seed=1)
    np.testing.assert_array_equal(done[1].positions, alone.positions)
    np.testing.assert_array_equal(done[1].potential_energies, alone.potential_energies)
    np.testing.assert_array_equal(done[1].heat, alone.heat)
    assert len(done[0].potential_energies) == len(done[0]) < len(alone)


def test_trust_knows_the_thermostat():
    atoms = cases.hot("CH3CH2OH")
    run = simulate(atoms, 3.0, duration=3000, model=MODEL, thermostat=Langevin(300.0, 0.05))
    assert not any("thermostat" in text for text in run.trust.warnings)
    monitor = TrustMonitor(atoms, thermostat_K=900.0)
    monitor.update(run.times, run.positions, run.momenta)
    assert any("that of the thermostat 900 K" in text for text in monitor.summary().warnings)


def test_internal_motion():
    atoms = cases.hot("CO2")
    atoms.rattle(0.2, seed=2)
    motion = InternalMotion(atoms)
    p = np.random.default_rng(0).standard_normal((3, 3))
    inner = motion.of(p)
    np.testing.assert_allclose(inner.sum(0), 0, atol=1e-14)
    np.testing.assert_allclose(motion.of(inner), inner, atol=1e-14)
    turning = motion.of(p) - p  # what is left out moves and turns the molecule, and no more
    centre = turning.sum(0) / motion.masses.sum() * motion.masses[:, None]
    spread = np.linalg.norm(atoms.positions[1:] - atoms.positions[:1], axis=1)
    later = atoms.positions + 1e-6 * (turning - centre) / motion.masses[:, None]
    np.testing.assert_allclose(np.linalg.norm(later[1:] - later[:1], axis=1), spread, atol=1e-10)


@pytest.mark.parametrize(
    "given, match",
    [
        ({"thermostat": "nose"}, "langevin, csvr"),
        ({"thermostat": "langevin"}, "temperature_K"),
        ({"thermostat": [CSVR(300.0)]}, "2 thermostats"),
        ({"equilibration": -1.0, "temperature_K": 300.0}, "equilibration"),
        ({"equilibration": 100.0}, "temperature_K"),
        ({"temperature_K": [300.0]}, "2 temperatures"),
        ({"temperature_K": [300.0, -1.0]}, "temperature_K must be positive"),
    ],
)
def test_refusals(given, match):
    with pytest.raises(ValueError, match=match):
        simulate([cases.hot("H2O"), cases.hot("NH3")], model=MODEL, **given)


def test_one_system_has_one_temperature():
    with pytest.raises(ValueError, match="one temperature_K"):
        simulate(cases.hot("H2O"), model=MODEL, temperature_K=[300.0])


@pytest.mark.parametrize("kind", [Langevin, CSVR])
@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan, np.inf, None])
def test_constants_are_checked(kind, bad):
    for arguments in ((bad, 1.0), (300.0, bad)):
        with pytest.raises(ValueError, match="must be a positive number"):
            kind(*arguments)


def test_one_atom_has_nothing_to_exchange():
    atoms = ase.Atoms("N", momenta=[[1.0, 2.0, 3.0]])
    run = simulate(atoms, 3.0, duration=30, model=MODEL, thermostat=Langevin(300.0))
    np.testing.assert_allclose(run.momenta, run.momenta[:1].repeat(11, 0))
