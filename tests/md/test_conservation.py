"""What the dynamics conserves: natively and in torch alike, and that it is conserved."""

import dataclasses

import ase
import cases
import numpy as np
import pytest
import torch
from cuda_emulation import call, load, needs_compiler, run_sanitized, thread_order
from emulated_gpu import CONSERVATION
from scipy.spatial.transform import Rotation

from mdtrajnet_fast import _C
from mdtrajnet_fast.md import conservation
from mdtrajnet_fast.md.conservation import draw_energy, internal_velocities
from mdtrajnet_fast.md.window import NEWTON_STEPS
from mdtrajnet_fast.mechanics import total_angular_momentum
from mdtrajnet_fast.neighbors.host import connected_components, neighbor_list
from mdtrajnet_fast.system import System


def native(system, t, moved, velocity, component, isolated):
    start = system.positions, system.velocities, system.masses
    return _C.conserve(*start, t, moved, velocity, component, isolated, NEWTON_STEPS)


def plain_torch(system, t, moved, velocity, component, isolated):
    start = system.positions, system.velocities, system.masses
    given = map(torch.as_tensor, (*start, t, moved, velocity, component, isolated))
    return tuple(x.numpy() for x in conservation.conserve(*given, NEWTON_STEPS))


ways = pytest.mark.parametrize("conserve", [native, plain_torch])
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
def test_native_and_torch_are_one(case, seed):
    given = inputs(CASES[case](seed), seed)
    before = [x.copy() for x in given[1:]]
    found, expected = native(*given), plain_torch(*given)
    np.testing.assert_allclose(found[0], expected[0], rtol=0, atol=1e-12)
    # the straighter a molecule, the less its spin about its own axis is determined
    straight = case in ("linear", "nearly linear", "mixture")
    np.testing.assert_allclose(found[1], expected[1], rtol=0, atol=1e-12 if straight else 1e-14)
    for x, y in zip(given[1:], before, strict=True):
        np.testing.assert_array_equal(x, y)  # inputs stay


@pytest.mark.parametrize("bend", [0.0, 1e-6, 1e-4, 1e-2, 0.1])
@pytest.mark.parametrize("drift", [True, False], ids=["flying", "tilted where it is"])
def test_native_and_torch_are_one_for_tilted_linear_molecules(bend, drift):
    rng = np.random.default_rng(0)
    atoms = ase.Atoms("OCO", positions=[[-1.16, 0, 0], [0, bend, 0], [1.16, 0, 0]])
    v = np.cross([0, 0.01, 0.02], atoms.positions - atoms.get_center_of_mass())
    atoms.set_velocities((v + rng.normal(size=(3, 3)) * 0.004) / ase.units.fs)
    system, times = System.from_atoms(atoms), np.array([2.0, 10.0])
    tilt = Rotation.from_rotvec([0.01, 0.02, -0.03]).as_matrix()
    away = times[:, None, None] * system.velocities if drift else system.velocities
    moved = system.positions @ tilt.T - system.positions + away
    moved = np.broadcast_to(moved, (2, 3, 3)) + rng.normal(scale=0.01, size=(2, 3, 3))
    velocity = system.velocities @ tilt.T + rng.normal(scale=1e-3, size=moved.shape)
    one = np.zeros(3, int)
    for isolated in (one == 0, one == 1):
        given = system, times, moved, velocity, one, isolated
        for a, b in zip(native(*given), plain_torch(*given), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)


def test_torch_without_isolated_systems():
    """None where nothing is isolated is the same as False everywhere."""
    *given, isolated = inputs(cases.mixture(), 0)
    none = conservation.conserve(
        *map(torch.as_tensor, (given[0].positions, given[0].velocities, given[0].masses)),
        *map(torch.as_tensor, given[1:]),
        None,
        NEWTON_STEPS,
    )
    for a, b in zip(none, native(*given, isolated & False), strict=True):
        np.testing.assert_allclose(a.numpy(), b, rtol=0, atol=1e-12)


@ways
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("case", CASES)
def test_momenta_are_those_of_the_start(case, seed, conserve):
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
    together = native(system, times, moved, velocity, component, isolated)
    for k, atoms in enumerate(many):
        part = slice(*system.ptr[k : k + 2])
        own = component[part] - component[part].min()
        for now in range(len(times)):
            alone = native(
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
    found = native(system, times, *single, component, isolated)
    expected = native(system, times, *(x.astype(np.float64) for x in single), component, isolated)
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
    for a, b in zip(native(*given), plain_torch(*given), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-14)


@ways
def test_what_is_not_finite_stays_with_its_component(conserve):
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
        native(**(given | change))


@ways
@pytest.mark.parametrize("bend", [0.0, 1e-6, 1e-4, 1e-2, 0.1])
def test_turning_linear_molecules_do_not_spin(bend, conserve):
    """A tilted, nearly linear molecule gets its angular momentum back without a fast spin."""
    rng = np.random.default_rng(0)
    atoms = ase.Atoms("OCO", positions=[[-1.16, 0, 0], [0, bend, 0], [1.16, 0, 0]])
    turning = np.array([0, 0.01, 0.02])
    v = np.cross(turning, atoms.positions - atoms.get_center_of_mass())
    atoms.set_velocities((v + rng.normal(size=(3, 3)) * 0.004) / ase.units.fs)
    system = System.from_atoms(atoms)
    centre = atoms.get_center_of_mass()
    tilt = Rotation.from_rotvec(10 * turning + [0, 0.02, -0.03]).as_matrix()
    moved = (atoms.positions - centre) @ tilt.T + centre - atoms.positions
    velocity = system.velocities @ tilt.T + rng.normal(size=(3, 3)) * 0.001
    times, one = np.array([10.0]), np.zeros(3, int)
    x, u = conserve(system, times, moved[None], velocity[None], one, one == 0)
    momenta = [
        total_angular_momentum(y[None], w[None], atoms.get_masses())
        for y, w in ((atoms.positions, system.velocities), (atoms.positions + x[0], u[0]))
    ]
    np.testing.assert_allclose(momenta[0], momenta[1], atol=1e-13)
    assert abs(u).max() < 1.3 * abs(velocity).max()
    assert abs(x[0] - moved).max() < 0.15


@ways
def test_conserve_leaves_what_is_conserved(conserve):
    """A motion that conserves both momenta already, free flight of a rigid body's atoms, stays."""
    atoms = cases.hot("CH3CH2OH")
    system = System.from_atoms(atoms)
    times = np.array([0.0, 0.0])
    moved = np.zeros((2, 9, 3))
    velocity = np.repeat(system.velocities[None], 2, 0)
    kept = conserve(system, times, moved, velocity, np.zeros(9, int), np.ones(9, bool))
    np.testing.assert_allclose(kept[0], moved, atol=1e-15)
    np.testing.assert_allclose(kept[1], velocity, atol=1e-14)


# ---- The energy, in torch; the native engine beside it is in test_engines.py.


def test_internal_velocities():
    """What is left has neither momentum nor, in molecules, angular momentum; energies add up."""
    many = [cases.hot("CH3CH2OH"), cases.hot("CO2"), ase.Atoms("O", momenta=[[1.0, 2.0, 3.0]])]
    straight = ase.Atoms("CNN", [[0, 0, 0], [0, 0, 1.2], [0, 0, 2.4]])
    straight.set_momenta(np.random.default_rng(0).normal(size=(3, 3)))
    drifting = cases.diamond()
    drifting.set_momenta(drifting.get_momenta() + [1.0, 0.0, -2.0])
    many += [straight, drifting]
    system = System.from_atoms(many)
    isolated = ~system.pbc.all(1)[system.system_index]
    x, v = (np.stack([y, y[::-1]]) for y in (system.positions, system.velocities))
    given = map(torch.as_tensor, (x, v, system.masses, system.system_index, isolated))
    internal = internal_velocities(*given).numpy()
    np.testing.assert_allclose(internal[0][system.system_index == 2], 0, atol=1e-15)
    for k, (a, b) in enumerate(zip(system.ptr, system.ptr[1:], strict=False)):
        mass = system.masses[a:b]
        for positions, velocities, inner in zip(x, v, internal, strict=True):
            r, u, w = positions[a:b], velocities[a:b], inner[a:b]
            np.testing.assert_allclose(mass @ w, 0, atol=1e-12)
            if k < 4:
                np.testing.assert_allclose(mass @ np.cross(r, w), 0, atol=1e-11)
            total, rigid, inside = (mass @ (y**2).sum(1) for y in (u, u - w, w))
            assert total == pytest.approx(rigid + inside)
            if k == 4:
                drift = np.broadcast_to(mass @ u / mass.sum(), u.shape)
                np.testing.assert_allclose(u - w, drift, atol=1e-14)
    given = map(torch.as_tensor, (x, v, system.masses, system.system_index))
    drifts = internal_velocities(*given, None).numpy()
    for a, b in zip(system.ptr, system.ptr[1:], strict=False):
        mean = np.average(v[:, a:b], axis=1, weights=system.masses[a:b])
        np.testing.assert_allclose(drifts[:, a:b], v[:, a:b] - mean[:, None], atol=1e-14)


def drawn(system, off, pull, near):
    """Velocities at half of the window, where they are 0.9 of those at its end, and at the end."""
    v = torch.as_tensor(np.stack([0.9 * system.velocities, system.velocities]))
    owner, mass = (torch.as_tensor(y) for y in (system.system_index, system.masses))
    x = torch.as_tensor(np.stack([system.positions] * 2))
    internal = internal_velocities(x, v, mass, owner, torch.ones_like(owner, dtype=torch.bool))

    def kinetic(u):
        energy = 0.5 / ase.units.fs**2 * mass * u.square().sum(-1)
        return energy.new_zeros(len(system)).index_add(0, owner, energy)

    off, near, pull, t = (
        torch.as_tensor(y, dtype=torch.float64) for y in (off, near, pull, [5.0, 10.0])
    )
    new = draw_energy(v, internal, t, off, kinetic, owner, near, pull, 0.3)
    energies = kinetic(new[-1]) - kinetic(v[-1])
    return (new - v).numpy(), internal.numpy(), energies.numpy(), kinetic(internal[-1]).numpy()


def test_scaling_has_a_limit():
    """An energy that cannot be had is approached: by 30 % of the internal velocities."""
    system = System.from_atoms([cases.hot("CH3CH2OH"), cases.hot("NH3")])
    first = system.system_index == 0
    more, internal, *_ = drawn(system, [-50.0, 50.0], np.inf, [1.0, 1.0])
    for atoms, part in ((first, -0.3), (~first, 0.3)):
        np.testing.assert_allclose(more[1, atoms], part * internal[1, atoms], atol=1e-14)
        np.testing.assert_allclose(more[0, atoms], part / 2 * internal[0, atoms], atol=1e-14)


def test_the_pull():
    """All of the way if infinite, else the share 1 - exp(-pull (1 + (difference / near)^4))."""
    system = System.from_atoms([cases.hot("CH3CH2OH"), cases.hot("NH3"), cases.hot("H2O")])
    off = np.array([0.05, -0.02, 0.0])
    whole, _, energies, own = drawn(system, off, np.inf, np.ones(3))
    np.testing.assert_allclose(energies, off, atol=1e-12)
    assert (own > 0.06).all()
    near = np.array([0.1, 0.015, 1.0])
    part, *_ = drawn(system, off, 0.2, near)
    share = 1 - np.exp(-0.2 * (1 + (off / near) ** 4))
    np.testing.assert_allclose(part, share[system.system_index, None] * whole, atol=1e-14)
    none, *_ = drawn(system, off, 0.0, near)
    assert not none.any()


@pytest.mark.parametrize("pull", [0.0, 0.2, np.inf])
def test_what_has_no_internal_energy_is_left_alone(pull):
    """Lone atoms, however means are rounded, and molecules at rest, whose near is 0, too."""
    momenta = np.random.default_rng(0).normal(size=(40, 1, 3))
    lone = [ase.Atoms("HCNO"[k % 4], momenta=p) for k, p in enumerate(momenta)]
    system = System.from_atoms([cases.hot("H2O"), resting(0), *lone])
    off, near = [0.1, 0.1, *[0.0, 0.1] * 20], [1.0, *[0.0] * 41]
    more, internal, *_ = drawn(system, off, pull, near)
    assert np.isfinite(more).all() and abs(more[:, system.system_index > 0]).max() < 1e-15
    assert not internal[:, system.system_index > 1].any()


@needs_compiler
@pytest.mark.parametrize("isolated", [True, False])
@pytest.mark.parametrize("times", [TIMES, TIMES[:1]], ids=["several times", "one time"])
@pytest.mark.parametrize("case", CASES)
def test_the_kernel_for_gpus_is_plain_torch(request, case, times, isolated):
    """Internal velocities, by the emulation; and none of a rigid body's motion is left."""
    system, _, moved, velocity, component, alone = inputs(CASES[case](0), 0, times)
    given = [system.positions + moved, velocity, system.masses, component]
    given = [torch.from_numpy(x) for x in given]
    given.append(torch.from_numpy(alone) if isolated else None)
    expected = internal_velocities(*given)
    request.getfixturevalue("emulated_conservation")
    found = internal_velocities(*given)
    assert found.shape == expected.shape == velocity.shape
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert not found[:, torch.from_numpy(np.bincount(component)[component] == 1)].any()


@needs_compiler
def test_the_kernel_for_gpus_in_any_order(emulated_conservation):
    """A crystal of more than a warp beside molecules: sums are those of every order, but for
    rounding."""
    many = [cases.diamond((2, 2, 1)), spinning("CH3CH2OH", 0), spinning("H2O", 1)]
    system, _, moved, velocity, component, alone = inputs(many, 0, TIMES[:1])
    given = [system.positions + moved, velocity, system.masses, component, alone]
    given = [torch.from_numpy(x) for x in given]
    library, found = load(*CONSERVATION), []
    for seed in range(3):
        with thread_order(library, seed):
            found.append(internal_velocities(*given))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=0, atol=1e-13)


def sanitized_cases() -> None:
    """A few systems, for run_sanitized."""
    library = load(*CONSERVATION)
    for case in ("mixture", "atom"):
        system, times, moved, velocity, component, alone = inputs(CASES[case](0), 0)
        arrays = (system.positions + moved, velocity, system.masses, component)
        arrays = [np.ascontiguousarray(x) for x in arrays]
        out = np.empty_like(arrays[1])
        workspace = np.empty(136 * out.size // 3, np.uint8)
        for turns in (alone, None):
            call(
                *(library.emulated_internal_velocities, len(times), len(system.masses), *arrays),
                *(turns, workspace, out),
            )
            assert np.isfinite(out).all()


@needs_compiler
@pytest.mark.slow
def test_address_and_undefined_behaviour_sanitizers():
    result = run_sanitized("test_conservation", "sanitized_cases()")
    assert result.returncode == 0, result.stderr
