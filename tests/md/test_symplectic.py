"""Symplectic windows: their structure whatever the weights, both engines, what is refused."""

import dataclasses

import cases
import numpy as np
import pytest
from ase.units import fs
from cases import gentle

from mdtrajnet_fast import (
    MDtrajNet,
    MDtrajNetDynamics,
    RolloutError,
    Trajectory,
    load_model,
    save_model,
    simulate,
)
from mdtrajnet_fast.md.rollout import engine_for, rollout
from mdtrajnet_fast.md.window import Kept, Method, Plan
from mdtrajnet_fast.mechanics import total_angular_momentum, total_momentum
from mdtrajnet_fast.model.window_potentials import ENDS, ENERGY, MIDDLE
from mdtrajnet_fast.system import System

H = 3.0  # the window of cases.WINDOW_POTENTIALS, fs
OPTIONS = cases.OWN | cases.WINDOW_POTENTIALS
MODEL = gentle(**OPTIONS)


def in_torch(model):
    model.backend = "reference"
    return model


def advance(model, atoms, x, v, windows=1):
    """Positions and velocities after some windows."""
    system = dataclasses.replace(System.from_atoms(atoms), positions=x)
    p = v / fs * atoms.get_masses()[:, None]
    *_, frames = rollout(model, system, p, dt=windows * H, duration=windows * H)
    return frames.positions[-1], frames.momenta[-1] * fs / atoms.get_masses()[:, None]


def acceleration(model, atoms, x, role):
    system = dataclasses.replace(System.from_atoms(atoms), positions=x)
    graph = model.graph(system)
    _, slopes = model.window_potentials.slopes(graph, graph.species.new_full((len(x),), role))
    return -(fs**2) * slopes.numpy() / atoms.get_masses()[:, None]


def test_a_window_is_what_it_says():
    atoms = cases.hot("CH3CH2OH")
    x, v = atoms.positions, cases.velocities(atoms)
    end, velocity = advance(MODEL, atoms, x, v)
    v = v + H / 6 * acceleration(MODEL, atoms, x, ENDS)
    x = x + H / 2 * v
    v = v + 2 * H / 3 * acceleration(MODEL, atoms, x, MIDDLE)
    x = x + H / 2 * v
    v = v + H / 6 * acceleration(MODEL, atoms, x, ENDS)
    np.testing.assert_allclose(end, x, atol=1e-12)
    np.testing.assert_allclose(velocity, v, atol=1e-13)
    assert abs(v - cases.velocities(atoms)).max() > 1e-4  # the kicks are no rounding


def test_a_window_is_symplectic():
    """J^T M J = M, for the Jacobian J of positions and momenta and the canonical matrix M."""
    atoms = cases.hot("H2O")
    x, root = atoms.positions, np.sqrt(np.repeat(atoms.get_masses(), 3))
    v, n = cases.velocities(atoms), 9

    def map_of(z):
        end, velocity = advance(
            MODEL, atoms, x + (z[:n] / root).reshape(3, 3), v + (z[n:] / root).reshape(3, 3)
        )
        return np.concatenate([(end - x).ravel() * root, (velocity - v).ravel() * root])

    step = 1e-4
    jacobian = np.stack(
        [(map_of(step * e) - map_of(-step * e)) / (2 * step) for e in np.eye(2 * n)], axis=1
    )
    canonical = np.block([[np.zeros((n, n)), np.eye(n)], [-np.eye(n), np.zeros((n, n))]])
    np.testing.assert_allclose(jacobian.T @ canonical @ jacobian, canonical, atol=1e-7)
    assert abs(jacobian - np.eye(2 * n)).max() > 1.0


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_windows_run_backwards(dtype):
    model = gentle(**OPTIONS) if dtype == "float64" else gentle(**OPTIONS).float()
    atoms = cases.hot("CH3CH2OH")
    x, v = atoms.positions, cases.velocities(atoms)
    there = advance(model, atoms, x, v, windows=50)
    back = advance(model, atoms, there[0], -there[1], windows=50)
    assert abs(there[0] - x).max() > 0.1
    np.testing.assert_allclose(back[0], x, atol=1e-9 if dtype == "float64" else 1e-3)


def many():
    return [cases.hot("CH3CH2OH"), cases.hot("H2O"), cases.hot("CO2"), cases.diamond((1, 1, 1))]


@pytest.mark.parametrize("dt", [3.0, 1.0, 7.0])
def test_engines_agree(dt):
    native = simulate(many(), dt, duration=42, model=MODEL)
    torch = simulate(many(), dt, duration=42, model=in_torch(gentle(**OPTIONS)))
    for a, b in zip(native, torch, strict=True):
        np.testing.assert_array_equal(a.times, b.times)
        np.testing.assert_allclose(a.positions, b.positions, atol=1e-10)
        np.testing.assert_allclose(a.momenta, b.momenta, atol=1e-9)


def test_bits():
    """Those of the end depend neither on dt, nor on how many windows a call has, nor on others."""
    model = gentle(**OPTIONS).float()
    coarse = simulate(many(), 30.0, duration=60, model=model)
    fine = simulate(many(), 1.0, duration=60, model=model)
    for k, atoms in enumerate(many()):
        alone = simulate(atoms, 15.0, duration=60, model=model)
        for other in (fine[k], alone):
            np.testing.assert_array_equal(coarse[k].positions[-1], other.positions[-1])
            np.testing.assert_array_equal(coarse[k].momenta[-1], other.momenta[-1])


def test_momenta_are_kept():
    model = gentle(**OPTIONS).float()
    atoms = cases.hot("CH3CH2OH")
    t = simulate(atoms, 3.0, duration=3000, model=model)
    masses = atoms.get_masses()
    momentum = total_momentum(t.velocities, masses)
    spin = total_angular_momentum(t.positions, t.velocities, masses)
    np.testing.assert_allclose(momentum, momentum[:1].repeat(len(t), 0), atol=1e-11)
    np.testing.assert_allclose(spin, spin[:1].repeat(len(t), 0), atol=1e-9)


def test_frames_within_pass_through_the_ends():
    atoms = cases.hot("CH3CH2OH")
    t = simulate(atoms, 0.01, duration=6, model=MODEL)
    v = (t.positions[2:] - t.positions[:-2]) / 0.02
    np.testing.assert_allclose(v, t.velocities[1:-1], atol=1e-6)
    a = (t.velocities[301] - t.velocities[299]) / 0.02  # across the end of a window
    expected = acceleration(MODEL, atoms, t.positions[300], ENERGY)
    np.testing.assert_allclose(a, expected, atol=0.02 * abs(expected).max())


@pytest.mark.parametrize("suffix", ["h5", "traj"])
def test_runs_go_on(tmp_path, suffix):
    atoms, path = cases.hot("CH3CH2OH"), tmp_path / f"run.{suffix}"
    settings = {"dt": 1.0, "model": MODEL, "trajectory": path}
    simulate(atoms, duration=20, **settings)
    assert Trajectory.read(path).metadata["method"] == "symplectic"
    whole = simulate(atoms, 1.0, duration=60, model=MODEL)
    resumed = simulate(atoms, duration=60, **settings, resume=True)
    np.testing.assert_array_equal(resumed.momenta, whole.momenta)
    with pytest.raises(ValueError, match="method"):
        simulate(atoms, duration=90, **settings, resume=True, method="reversible")


def test_ase_dynamics():
    atoms = cases.hot("CH3CH2OH")
    whole = simulate(atoms, 1.0, duration=9, model=MODEL)
    dynamics = MDtrajNetDynamics(atoms, 1.0 * fs, model=MODEL)
    assert dynamics.method == "symplectic"
    dynamics.run(9)
    np.testing.assert_array_equal(atoms.positions, whole.positions[-1])


def test_other_methods_of_the_same_model():
    atoms = cases.hot("CH3CH2OH")
    free = {"duration": 50, "method": "reversible", "energy_rate": 0.0}
    a, b = (simulate(atoms, 10.0, model=m, **free) for m in (MODEL, gentle(**cases.OWN)))
    np.testing.assert_array_equal(a.positions, b.positions)
    plain = simulate(atoms, 10.0, duration=50, model=MODEL, method="plain")
    assert abs(plain.momenta[1] - a.momenta[1]).max() > 1e-3


@pytest.mark.parametrize("make", [lambda m: m, in_torch], ids=["native", "torch"])
def test_ends_are_drawn_to_the_energy(make):
    """Every other one here, to energies near those that they have; all else stays as it is."""
    model, many = make(gentle(**OPTIONS)), [cases.hot("CH3CH2OH"), cases.hot("H2O")]
    system = System.from_atoms(many)
    momenta = np.concatenate([one.get_momenta() for one in many])
    ends, wanted = [], None
    for needed in (0, 1):
        engine = engine_for(model, system, Method("symplectic", np.inf, 2, needed))
        engine.set_state(system.positions, momenta)
        if wanted is not None:
            engine.kept = wanted
        for number in range(2):
            engine.begin(Plan(number, [[H]], [[False]]))
            engine.end()
            ends.append((*engine.state(), engine.energies()[0]))
        wanted = Kept(engine.energies() + [[0.02, -0.02], [0.0, 0.0]], 1)
    for a, b in zip(ends[0], ends[2], strict=True):  # the first one is not due
        np.testing.assert_array_equal(a, b)
    (x, free, left), (y, drawn, kept) = ends[1], ends[3]
    np.testing.assert_array_equal(x, y)
    np.testing.assert_allclose(kept - left, [0.02, -0.02], atol=1e-9)
    change = (drawn - free) / system.masses[:, None]
    for own in (slice(0, 9), slice(9, 12)):
        m = system.masses[own]
        assert abs(total_momentum(change[None, own], m)).max() < 1e-10
        assert abs(total_angular_momentum(x[None, own], change[None, own], m)).max() < 1e-10


def test_refusals():
    atoms = cases.hot("H2O")
    with pytest.raises(ValueError, match="no window potentials"):
        simulate(atoms, model=gentle(**cases.OWN), method="symplectic")
    with pytest.raises(ValueError, match="symplectic, reversible, plain"):
        simulate(atoms, model=MODEL, method="verlet")
    with pytest.raises(ValueError, match="window must be 3 fs"):
        simulate(atoms, model=MODEL, window=4.0)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("dt", [1.0, 3.0, 30.0])
def test_the_others_go_on_when_one_breaks(backend, dt, tmp_path):
    model = gentle(**OPTIONS)
    model.backend = backend
    broken, path = cases.meets(model), tmp_path / "broken.h5"
    with pytest.raises(RolloutError, match="leaves its course"):
        simulate(broken, dt, duration=360, model=model, trajectory=path)
    assert 200 < Trajectory.read(path).times[-1] < 300
    with pytest.warns(RuntimeWarning, match="system 0: the trajectory broke"):
        done = simulate([broken, cases.hot("H2O")], dt, duration=360, model=model)
    assert 200 < done[0].times[-1] < 300 and done[1].times[-1] == 360
    alone = simulate(cases.hot("H2O"), dt, duration=360, model=model)
    np.testing.assert_allclose(done[1].positions, alone.positions, atol=1e-12)
    if backend == "cpu":  # torch rounds products of other shapes anew
        np.testing.assert_array_equal(done[1].positions, alone.positions)


def test_models_of_window_potentials_alone(tmp_path):
    """They run as those with a network do, to the bit; what needs one says so."""
    made, atoms = cases.alone(MODEL), cases.hot("CH3CH2OH")
    save_model(made, tmp_path / "model")
    for one in (made, load_model(tmp_path / "model", dtype="float64")):
        run, other = (simulate(atoms, 1.0, duration=30.0, model=m) for m in (one, MODEL))
        np.testing.assert_array_equal(run.positions, other.positions)
        np.testing.assert_array_equal(run.momenta, other.momenta)
    slower = simulate(atoms, 1.0, duration=30.0, model=in_torch(cases.alone(MODEL)))
    np.testing.assert_allclose(slower.positions, run.positions, atol=1e-9)
    dynamics = MDtrajNetDynamics(atoms, H * fs, model=cases.alone(MODEL))
    dynamics.run(10)
    np.testing.assert_allclose(atoms.positions, run.positions[-1], atol=1e-9)
    assert np.isfinite(atoms.get_total_energy())
    for call in (
        lambda: simulate(atoms, 1.0, duration=30.0, model=made, method="reversible"),
        lambda: simulate(atoms, 1.0, duration=30.0, model=made, method="plain"),
        lambda: made.predict(atoms, [1.0]),
        lambda: made(made.graph(System.from_atoms(atoms)), None),
    ):
        with pytest.raises(ValueError, match="'alone' has window potentials and no network"):
            call()
    with pytest.raises(ValueError, match="at least one member, or window potentials"):
        MDtrajNet(dataclasses.replace(made.config, window_potentials=None), members=0)
