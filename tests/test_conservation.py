"""conserve() against its equations in numpy, and what it is for: momenta that are exactly kept."""

import dataclasses

import ase
import cases
import conservation_numpy
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from mdtrajnet_fast import _C
from mdtrajnet_fast.conservation import conserve
from mdtrajnet_fast.neighbors import connected_components, neighbor_list
from mdtrajnet_fast.system import System

TIMES = np.array([0.3, 2.0, 5.0, 10.0])


def rotor(seed, bend=0.0, spin=0.02):
    """A linear or nearly linear molecule in any direction, turning about an axis across it."""
    rng = np.random.default_rng(seed)
    atoms = ase.Atoms("OCO", positions=[[-1.16, 0, 0], [0, bend, 0], [1.16, 0, 0]])
    v = np.cross([0, 0.6 * spin, 0.8 * spin], atoms.positions - atoms.get_center_of_mass())
    direction = Rotation.random(random_state=seed).as_matrix()
    atoms.positions = atoms.positions @ direction.T + rng.normal(size=3)
    atoms.set_velocities((v @ direction.T + 0.01 * rng.normal(size=3)) / ase.units.fs)
    return atoms


def spinning(name, seed):
    """A molecule that turns fast, and is on its way."""
    rng, atoms = np.random.default_rng(seed), cases.hot(name, seed=seed)
    v = np.cross(0.03 * rng.normal(size=3), atoms.positions - atoms.get_center_of_mass())
    atoms.set_velocities(atoms.get_velocities() + (v + 0.02 * rng.normal(size=3)) / ase.units.fs)
    return atoms


def apart(seed):
    """One system of two molecules and an atom out of each other's reach, its atoms shuffled."""
    whole = spinning("CH3CH2OH", seed)
    for k, other in enumerate((spinning("H2O", seed), ase.Atoms("N", velocities=[[1, 2, 3]]))):
        other.positions += 20.0 * (k + 1)
        whole += other
    return whole[np.random.default_rng(seed).permutation(len(whole))]


def resting(seed):
    atoms = cases.hot("CH3CN", seed=seed)
    atoms.set_momenta(np.zeros((len(atoms), 3)))
    return atoms


CASES = {
    "molecule": lambda seed: [spinning("CH3CH2OH", seed)],
    "at rest": lambda seed: [resting(seed)],
    "diatomic": lambda seed: [spinning("H2", seed), spinning("CO", seed)],
    "linear": lambda seed: [rotor(seed)],
    "nearly linear": lambda seed: [rotor(seed, bend) for bend in (1e-6, 1e-2, 0.1)],
    "atom": lambda seed: [apart(seed)[[int(np.argmax(apart(seed).numbers == 7))]]],
    "components": lambda seed: [apart(seed)],
    "periodic": lambda seed: [cases.diamond((1, 1, 2), seed)],
    "mixture": lambda seed: [*cases.mixture(), spinning("CH3CH2OH", seed), apart(seed)],
}


def inputs(many, seed, times=TIMES):
    """A system's motion as a model would predict it: nearly right, and turned a little."""
    rng, system = np.random.default_rng(seed), System.from_atoms(many)
    edges = neighbor_list(system.positions, 4.0, system.cell, system.pbc, system.ptr)
    component = connected_components(edges)
    isolated = ~system.pbc.any(1)[system.system_index]
    shape = (len(times), *system.positions.shape)
    moved = system.velocities * times[:, None, None] + rng.normal(scale=0.01, size=shape)
    velocity = system.velocities + rng.normal(scale=1e-3, size=shape)
    for k, turn in enumerate(Rotation.from_rotvec(0.03 * rng.normal(size=(len(times), 3)))):
        x = system.positions - np.array(
            [system.positions[component == c].mean(0) for c in component]
        )
        moved[k] += turn.apply(x) - x
        velocity[k] = turn.apply(velocity[k])
    return system, times, moved, velocity, component, isolated


def momenta(x, v, mass, component):
    """Momenta, centres of mass and angular momenta about them, of each component."""
    for c in range(component.max() + 1):
        m, y, u = mass[component == c, None], x[component == c], v[component == c]
        centre, drift = (m * y).sum(0) / m.sum(), (m * u).sum(0) / m.sum()
        yield centre, drift, (m * np.cross(y - centre, u - drift)).sum(0)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("case", CASES)
def test_equals_numpy(case, seed):
    given = inputs(CASES[case](seed), seed)
    before = [x.copy() for x in given[1:]]
    found, expected = conserve(*given), conservation_numpy.conserve(*given)
    np.testing.assert_allclose(found[0], expected[0], rtol=0, atol=1e-12)
    # the straighter a molecule, the less its spin about its own axis is determined
    straight = case in ("linear", "nearly linear", "mixture")
    np.testing.assert_allclose(found[1], expected[1], rtol=0, atol=1e-12 if straight else 1e-14)
    for x, y in zip(given[1:], before, strict=True):
        np.testing.assert_array_equal(x, y)  # inputs stay


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("case", CASES)
def test_momenta_are_those_of_the_start(case, seed):
    system, times, moved, velocity, component, isolated = inputs(CASES[case](seed), seed)
    x, v = conserve(system, times, moved, velocity, component, isolated)
    start = list(momenta(system.positions, system.velocities, system.masses, component))
    for k, t in enumerate(times):
        end = momenta(system.positions + x[k], v[k], system.masses, component)
        for c, (a, b) in enumerate(zip(start, end, strict=True)):
            np.testing.assert_allclose(b[0], a[0] + a[1] * t, rtol=0, atol=1e-13)
            np.testing.assert_allclose(b[1], a[1], rtol=0, atol=1e-15)
            if isolated[component == c].all():
                np.testing.assert_allclose(b[2], a[2], rtol=0, atol=1e-13)


def test_a_result_is_its_own():
    """Bits do not depend on the other systems, nor on the other times."""
    many = [*cases.mixture(), rotor(0), apart(0)]
    system, times, moved, velocity, component, isolated = inputs(many, 0)
    together = conserve(system, times, moved, velocity, component, isolated)
    for k, atoms in enumerate(many):
        part = slice(*system.ptr[k : k + 2])
        own = component[part] - component[part].min()
        for now in range(len(times)):
            alone = conserve(
                dataclasses.replace(System.from_atoms(atoms), velocities=system.velocities[part]),
                times[[now]],
                moved[[now], part],
                velocity[[now], part],
                own,
                isolated[part],
            )
            for a, b in zip(alone, together, strict=True):
                np.testing.assert_array_equal(a[0], b[now, part])


def test_float32_is_taken_as_it_is():
    system, times, moved, velocity, component, isolated = inputs(cases.mixture(), 0)
    single = [x.astype(np.float32) for x in (moved, velocity)]
    found = conserve(system, times, *single, component, isolated)
    expected = conserve(system, times, *(x.astype(np.float64) for x in single), component, isolated)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_large_component():
    """100,000 atoms in one, periodic: only the mean changes."""
    rng, n = np.random.default_rng(0), 100_000
    system = System(
        numbers=np.full(n, 6),
        positions=rng.uniform(0, 80, (n, 3)),
        velocities=rng.normal(scale=0.01, size=(n, 3)),
        masses=rng.uniform(1, 20, n),
        cell=80 * np.eye(3)[None],
        pbc=np.ones((1, 3), bool),
        ptr=np.array([0, n]),
    )
    moved, velocity = rng.normal(size=(2, 1, n, 3)) * 0.01
    one = np.zeros(n, int)
    given = system, np.array([10.0]), moved, velocity, one, one > 0
    found = conserve(*given)
    for a, b in zip(found, conservation_numpy.conserve(*given), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-14)


def test_what_is_not_finite_stays_with_its_component():
    system, times, moved, velocity, component, isolated = inputs([apart(0), rotor(0)], 0)
    fine = conserve(system, times, moved, velocity, component, isolated)
    moved[1, 0] = np.nan
    velocity[2, 0] = np.inf
    found = conserve(system, times, moved, velocity, component, isolated)
    for a, b in zip(found, fine, strict=True):
        others = component != component[0]
        np.testing.assert_array_equal(a[:, others], b[:, others])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"t": TIMES[:2]}, r"moved must be of shape \[2, 9, 3\]"),
        ({"component": np.arange(9) - 1}, "component must hold labels"),
        ({"component": np.arange(9) + 1}, "component must hold labels"),
        ({"isolated": np.ones(8, bool)}, r"isolated must be of shape \[9\]"),
    ],
)
def test_wrong_shapes_are_refused(change, message):
    names = ("system", "t", "moved", "velocity", "component", "isolated")
    given = dict(zip(names, inputs([cases.hot("CH3CH2OH")], 0), strict=True))
    with pytest.raises(ValueError, match=message):
        conserve(**(given | change))


@pytest.mark.parametrize("flight", [False, True])
def test_runaway(flight):
    rng = np.random.default_rng(3)
    v, t = rng.normal(scale=0.1, size=(7, 3)), np.array([1.0, 40.0])
    start = v * t[:, None, None] if flight else 0.0
    moved = start + rng.uniform(-3.9, 3.9, (2, 7, 3))
    velocity = rng.normal(size=(2, 7, 3))

    def found():
        return _C.runaway(v, t, moved, velocity, flight, 4.0)

    assert found() == -1
    velocity[0, 6, 1] = np.inf
    assert found() == 6
    moved[1, 5, 2] = np.nan
    assert found() == 5
    moved[0, 3] = (start[0, 3] if flight else 0.0) + np.array([0.0, -4.1, 0.0])
    assert found() == 3
    with pytest.raises(ValueError, match=r"moved must be of shape \[1, 7, 3\]"):
        _C.runaway(v, t[:1], moved, velocity, flight, 4.0)
