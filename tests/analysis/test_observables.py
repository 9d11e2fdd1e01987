"""Analysis and trust against known answers: oscillators, thermal draws, atoms moved by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, molecule

from mdtrajnet_fast.analysis import observables as analysis
from mdtrajnet_fast.analysis.observables import (
    WAVENUMBER,
    BondWatch,
    bond_changes,
    bonds,
    centre_of_mass_drift,
    infrared_spectrum,
    peaks,
    vibrational_density_of_states,
)
from mdtrajnet_fast.analysis.trust import TrustMonitor, trust_summary
from mdtrajnet_fast.io.trajectory import Trajectory
from mdtrajnet_fast.mechanics import (
    atomic_degrees_of_freedom,
    degrees_of_freedom,
    kinetic_temperature,
    momenta_from_velocities,
    rotation_axes,
    temperature_per_element,
    total_angular_momentum,
    total_momentum,
)

# ---------------------------------------------------------------------------------- spectra


def oscillating(wavenumbers, amplitudes, frames: int, dt: float) -> np.ndarray:
    """Velocities of one atom for each wavenumber, cosines along x."""
    t = np.arange(frames)[:, None] * dt
    v = np.zeros((frames, len(wavenumbers), 3))
    v[:, :, 0] = amplitudes * np.cos(2 * np.pi * np.array(wavenumbers) / WAVENUMBER * t)
    return v


@pytest.mark.parametrize("wavenumber", [200.0, 1595.0, 3756.0])
@pytest.mark.parametrize("dt", [0.5, 2.0])
def test_peak_of_an_oscillator(wavenumber: float, dt: float) -> None:
    v = oscillating([wavenumber], [0.01], int(5000 / dt), dt)
    w, y = vibrational_density_of_states(v, [1.008], dt, max_wavenumber=4000)
    assert np.abs(w[np.argmax(y)] - wavenumber) <= (w[1] - w[0]) / 2 + 1e-6
    (found,) = peaks(w, y)
    assert found == (w[np.argmax(y)], y.max())
    # The width that was asked for: 20 cm^-1 at half maximum.
    above = w[y > y.max() / 2]
    assert np.ptp(above) == pytest.approx(20, abs=2 * (w[1] - w[0]))


def test_masses_and_normalisation() -> None:
    """Each line's share is its share of the kinetic energy, and the whole integrates to one."""
    masses, amplitudes = np.array([12.0, 1.0]), np.array([0.02, 0.05])
    v = oscillating([1000, 3000], amplitudes, 40_000, 1.0)
    w, y = vibrational_density_of_states(v, masses, 1.0, max_wavenumber=WAVENUMBER / 2)
    assert y.min() >= 0
    assert np.sum((y[1:] + y[:-1]) / 2 * np.diff(w)) == pytest.approx(1, abs=1e-12)
    energy = masses * amplitudes**2
    share = [y[np.abs(w - x) < 100].sum() * (w[1] - w[0]) for x in (1000, 3000)]
    np.testing.assert_allclose(share, energy / energy.sum(), rtol=1e-3)
    low, part = vibrational_density_of_states(v, masses, 1.0, max_wavenumber=2000)
    assert low[-1] <= 2000
    assert part.sum() * (low[1] - low[0]) == pytest.approx(energy[0] / energy.sum(), rel=1e-3)


def test_spectrum_does_not_depend_on_how_atoms_are_grouped(monkeypatch) -> None:
    v = np.random.default_rng(0).normal(size=(6000, 5, 3))
    masses = np.array([1.0, 12.0, 16.0, 14.0, 1.0])
    _, together = vibrational_density_of_states(v, masses, 1.0)
    monkeypatch.setattr(analysis, "_AT_ONCE", 12_000)  # two atoms, two atoms, one
    _, apart = vibrational_density_of_states(v, masses, 1.0)
    np.testing.assert_allclose(apart, together, rtol=1e-10)


def test_spectrum_refuses_with_numbers() -> None:
    v = oscillating([1000], [0.01], 500, 1.0)
    with pytest.raises(ValueError, match=r"500 frames .* 96.1 cm\^-1, not 20: .* 2402 frames"):
        vibrational_density_of_states(v, [1.0], 1.0)
    vibrational_density_of_states(v, [1.0], 1.0, resolution=96.1)
    with pytest.raises(ValueError, match=r"every 5 fs .* up to 3336 cm\^-1, not 4500: .* 3.71 fs"):
        vibrational_density_of_states(v, [1.0], 5.0, resolution=50)
    with pytest.raises(ValueError, match="all zero"):
        vibrational_density_of_states(0 * v, [1.0], 1.0, resolution=100)
    with pytest.raises(ValueError, match="dt_fs = 0"):
        vibrational_density_of_states(v, [1.0], 0.0)
    with pytest.raises(ValueError, match="resolution < max_wavenumber"):
        vibrational_density_of_states(v, [1.0], 1.0, resolution=5000)
    with pytest.raises(ValueError, match=r"\(500, 1, 3\) and masses of shape \(2,\)"):
        vibrational_density_of_states(v, [1.0, 1.0], 1.0)


def moments(wavenumbers, amplitudes, frames: int, dt: float) -> np.ndarray:
    """A dipole that is large at rest and moves by cosines along x."""
    mu = oscillating(wavenumbers, amplitudes, frames, dt).sum(1)
    return mu + [3.0, -2.0, 0.5]


@pytest.mark.parametrize("dt", [0.5, 4.0])
def test_infrared_lines_are_those_of_the_derivative(dt: float) -> None:
    """Shares of amplitude^2 frequency^2, also where a period has two frames; nothing at rest."""
    lines, amplitudes = np.array([500.0, 1700.0, 3900.0]), np.array([0.05, 0.02, 0.01])
    mu = moments(lines, amplitudes, int(100_000 / dt), dt)
    w, y = infrared_spectrum(mu, dt, max_wavenumber=4100)
    assert np.sum((y[1:] + y[:-1]) / 2 * np.diff(w)) == pytest.approx(1, abs=1e-3)
    share = [y[np.abs(w - x) < 90].sum() * (w[1] - w[0]) for x in lines]
    expected = (amplitudes * lines) ** 2
    np.testing.assert_allclose(share, expected / expected.sum(), rtol=2e-3)
    assert [x for x, _ in peaks(w, y)] == pytest.approx(lines, abs=(w[1] - w[0]))
    assert y[w < 300].max() < 1e-6 * y.max()


def test_infrared_has_the_bins_of_the_motion() -> None:
    """Of the shortest run, too."""
    rng = np.random.default_rng(0)
    w, _ = vibrational_density_of_states(rng.normal(size=(2402, 3, 3)), [1.0, 2.0, 3.0], 1.0)
    infrared, _ = infrared_spectrum(rng.normal(size=(2402, 3)), 1.0)
    np.testing.assert_array_equal(infrared, w)


def test_infrared_refuses_with_numbers() -> None:
    mu = moments([1000], [0.01], 500, 1.0)
    with pytest.raises(ValueError, match=r"500 frames .* 96.1 cm\^-1, not 20: .* 2402 frames"):
        infrared_spectrum(mu, 1.0)
    with pytest.raises(ValueError, match=r"every 5 fs .* up to 3336 cm\^-1, not 4500"):
        infrared_spectrum(mu, 5.0, resolution=50)
    with pytest.raises(ValueError, match="never change"):
        infrared_spectrum(0 * mu + 1, 1.0, resolution=100)
    with pytest.raises(ValueError, match=r"shape \(500, 2\); expected \[frames, 3\]"):
        infrared_spectrum(mu[:, :2], 1.0, resolution=100)


def test_peaks_keeps_the_highest() -> None:
    w = np.arange(4000.0)
    heights = [1.0, 3.0, 2.0, 0.01]
    centres = [500, 1500, 2500, 3500]
    y = sum(h * np.exp(-(((w - c) / 10) ** 2)) for h, c in zip(heights, centres, strict=True))
    assert [x for x, _ in peaks(w, y)] == [500, 1500, 2500]
    assert [x for x, _ in peaks(w, y, count=2)] == [1500, 2500]
    assert [x for x, _ in peaks(w, y, prominence=1e-4)] == centres


# ---------------------------------------------------------------------------------- temperature


def drawn(atoms: Atoms, frames: int, temperature: float, rotation: bool = False) -> np.ndarray:
    """Velocities [frames, atoms, 3] Å/fs from Maxwell-Boltzmann, without net momentum."""
    m, r = atoms.get_masses()[:, None], atoms.positions - atoms.get_center_of_mass()
    size = np.sqrt(units.kB * temperature / m) * units.fs
    v = size * np.random.default_rng(5).normal(size=(frames, len(atoms), 3))
    v -= np.sum(m * v, axis=1, keepdims=True) / m.sum()
    if not rotation:
        inertia = np.sum(m * r**2) * np.eye(3) - (m * r).T @ r
        spin = np.sum(np.cross(r, m * v), axis=1)
        v -= np.cross((spin @ np.linalg.pinv(inertia, rcond=1e-9))[:, None], r)
    return v


def test_temperature_is_that_of_ase() -> None:
    atoms = molecule("CH3CH2OH")
    v = drawn(atoms, 1, 300)
    atoms.set_velocities(v[0] / units.fs)
    assert kinetic_temperature(v, atoms.get_masses())[0] == pytest.approx(atoms.get_temperature())
    half = kinetic_temperature(v, atoms.get_masses(), 54)[0]
    assert half == pytest.approx(atoms.get_temperature() / 2)
    with pytest.raises(ValueError, match="0 degrees of freedom"):
        kinetic_temperature(v, atoms.get_masses(), 0)


@pytest.mark.parametrize("name", ["H2O", "CO2", "CH3CH2OH"])
@pytest.mark.parametrize("rotation", [False, True])
def test_equipartition_of_small_molecules(name: str, rotation: bool) -> None:
    """With the right degrees of freedom every element has the temperature of the draw."""
    atoms = molecule(name)
    v = drawn(atoms, 4000, 400, rotation)
    m = atoms.get_masses()
    dof = atomic_degrees_of_freedom(atoms, rotation=not rotation)
    total = degrees_of_freedom(atoms, rotation=not rotation)
    assert dof.sum() == pytest.approx(total)
    assert kinetic_temperature(v, m, total).mean() == pytest.approx(400, rel=0.03)
    for temperature in temperature_per_element(v, m, atoms.numbers, dof).values():
        assert temperature.mean() == pytest.approx(400, rel=0.06)


def test_temperature_per_element_by_hand() -> None:
    v = np.zeros((1, 3, 3))
    v[0, :, 0] = [0.01, 0.02, 0.0]
    each = temperature_per_element(v, [16.0, 1.0, 1.0], [8, 1, 1])
    unit = 1 / (units.fs**2 * units.kB)
    assert each["O"][0] == pytest.approx(16 * 1e-4 / 3 * unit)
    assert each["H"][0] == pytest.approx(4e-4 / 6 * unit)
    with pytest.raises(ValueError, match=r"numbers \(2,\)"):
        temperature_per_element(v, [16.0, 1.0, 1.0], [8, 1])


@pytest.mark.parametrize(
    "atoms, expected",
    [
        (molecule("H2O"), 3),
        (molecule("CO2"), 4),
        (molecule("C2H2"), 7),
        (molecule("H2"), 1),
        (molecule("H"), 0),
        (molecule("CH3CH2OH"), 21),
        (bulk("Cu", cubic=True), 9),
    ],
)
def test_degrees_of_freedom(atoms: Atoms, expected: int) -> None:
    assert degrees_of_freedom(atoms) == expected
    atoms.rotate(37, (1, 2, 3))
    atoms.positions += 5
    assert degrees_of_freedom(atoms) == expected


def test_a_bent_linear_molecule_stays_linear() -> None:
    atoms = molecule("CO2")
    atoms.positions[0] += [0.1, 0, 0]  # some ten degrees
    assert degrees_of_freedom(atoms) == 4
    assert degrees_of_freedom(molecule("H2O")) == 3


@pytest.mark.parametrize(
    "atoms, count",
    [(molecule("H2O"), 3), (molecule("CO2"), 2), (molecule("H2"), 2), (molecule("H"), 0)],
)
def test_rotation_axes(atoms: Atoms, count: int) -> None:
    atoms.rotate(37, (1, 2, 3))
    atoms.positions += 5
    if count == 2:  # off its line, but not far enough to be bent for good
        atoms.positions[0] += [0.05, -0.1, 0.05]
    axes = rotation_axes(atoms)
    assert axes.shape == (count, 3)
    np.testing.assert_allclose(axes @ axes.T, np.eye(count), atol=1e-12)
    # Principal axes: turning about one of them gives no angular momentum about another.
    r, m = atoms.positions - atoms.get_center_of_mass(), atoms.get_masses()[:, None]
    spin = np.array([np.sum(m * np.cross(r, np.cross(axis, r)), axis=0) for axis in axes])
    if count:
        moments = spin @ axes.T
        np.testing.assert_allclose(moments, np.diag(np.diag(moments)), atol=1e-10)
        assert np.diag(moments).min() > 0.1
    assert degrees_of_freedom(atoms) == 3 * len(atoms) - 3 - count


# ---------------------------------------------------------------------------------- bonds


def test_bonds_of_ethanol() -> None:
    atoms = molecule("CH3CH2OH")
    pairs, shifts = bonds(atoms.numbers, atoms.positions)
    names = sorted("".join(sorted(atoms.symbols[i] + atoms.symbols[j])) for i, j in pairs)
    assert names == ["CC", "CH", "CH", "CH", "CH", "CH", "CO", "HO"]
    assert np.all(pairs[:, 0] < pairs[:, 1]) and not shifts.any()


def test_bonds_through_the_cell() -> None:
    """Diamond has two bonds an atom, also where a cell holds one pair, wherever atoms sit."""
    for atoms in (bulk("C"), bulk("C", cubic=True), bulk("C") * (5, 4, 3)):
        moved = atoms.copy()
        moved.positions[::2] += 3 * moved.cell[0] - moved.cell[2]
        for one in (atoms, moved):
            pairs, shifts = bonds(one.numbers, one.positions, one.cell[:], one.pbc)
            r = one.positions[pairs[:, 1]] + shifts @ one.cell[:] - one.positions[pairs[:, 0]]
            assert len(pairs) == 2 * len(one)
            np.testing.assert_allclose(np.linalg.norm(r, axis=1), 3.57 * 3**0.5 / 4, rtol=1e-9)
    chain = Atoms("C", cell=[1.4, 9, 9], pbc=[True, False, False])
    pairs, shifts = bonds(chain.numbers, chain.positions, chain.cell[:], chain.pbc)
    assert pairs.tolist() == [[0, 0]] and shifts.tolist() == [[1, 0, 0]]


def moving(atoms: Atoms, positions: np.ndarray, dt: float = 1.0) -> Trajectory:
    """Velocities by finite differences, so that momenta agree with the motion."""
    velocities = np.gradient(positions, dt, axis=0) if len(positions) > 1 else 0 * positions
    momenta = momenta_from_velocities(velocities, atoms.get_masses())
    return Trajectory(atoms, dt * np.arange(len(positions)), positions, momenta)


def test_bond_breaks_and_another_forms() -> None:
    # H2 + H in a row; the middle atom goes over from the first to the last.
    atoms = Atoms("HHH", positions=[[0, 0, 0], [0.74, 0, 0], [3, 0, 0]])
    x = np.repeat(atoms.positions[None], 101, axis=0)
    x[:, 1, 0] = np.linspace(0.74, 2.3, 101)
    broken, formed = bond_changes(moving(atoms, x))
    (b,), (f,) = broken, formed
    assert b.atoms == (0, 1) and f.atoms == (1, 2)
    assert b.elements == f.elements == ("H", "H")
    two_radii = 0.62
    assert b.time_fs == np.argmax(x[:, 1, 0] > 1.5 * two_radii)
    assert f.time_fs == np.argmax(3 - x[:, 1, 0] < 1.15 * two_radii)
    assert 0 < b.time_fs < f.time_fs
    assert b.length == pytest.approx(x[int(b.time_fs), 1, 0])
    assert str(b) == f"H0-H1 at {b.time_fs:g} fs ({b.length:.2f} Å)"


def test_vibration_breaks_nothing() -> None:
    atoms = molecule("CH3CH2OH")
    x = atoms.positions + 0.12 * np.sin(np.arange(50))[:, None, None] * np.random.default_rng(
        0
    ).uniform(-1, 1, (9, 3))
    assert bond_changes(moving(atoms, x)) == ((), ())


def test_bonds_of_an_unwrapped_crystal_hold_while_it_travels() -> None:
    atoms = bulk("C", cubic=True) * (2, 2, 2)
    x = atoms.positions + 0.3 * np.arange(60)[:, None, None] * np.array([1.0, 0.7, -0.2])
    assert bond_changes(moving(atoms, x)) == ((), ())
    x[40:, 7] += 1.2  # one atom leaves its place
    broken, formed = bond_changes(moving(atoms, x))
    assert {change.time_fs for change in broken + formed} == {40.0}
    assert all(7 in change.atoms for change in broken + formed)
    assert len(broken) >= 1


# ---------------------------------------------------------------------------------- conservation


def test_momenta_and_drift() -> None:
    atoms = molecule("CH3CH2OH")
    rng = np.random.default_rng(0)
    v, x = rng.normal(size=(2, 4, 9, 3))
    m = atoms.get_masses()
    p = total_momentum(v, m)
    spin = total_angular_momentum(x, v, m)
    for k in range(4):
        atoms.positions = x[k]
        atoms.set_velocities(v[k])
        np.testing.assert_allclose(p[k], atoms.get_momenta().sum(axis=0), atol=1e-12)
        atoms.set_velocities(v[k] - p[k] / m.sum())
        np.testing.assert_allclose(spin[k], atoms.get_angular_momentum(), atol=1e-12)


def test_drift_is_what_is_beyond_ballistic_motion() -> None:
    atoms = molecule("H2O")
    t = np.arange(20.0)
    straight = np.array([0.02, -0.01, 0.3]) * t[:, None]
    bent = 0.001 * t[:, None] ** 2 * np.array([0, 1.0, 0])
    for extra in (0 * bent, bent):
        x = atoms.positions + (straight + extra)[:, None]
        p = momenta_from_velocities(
            np.broadcast_to([0.02, -0.01, 0.3], x.shape), atoms.get_masses()
        )
        drift = centre_of_mass_drift(Trajectory(atoms, 7 + t, x, p))
        np.testing.assert_allclose(drift, extra, atol=1e-12)


# ---------------------------------------------------------------------------------- trust


def thermal_crystal(hydrogen: float = 300, heating: float = 0, frames: int = 400) -> Trajectory:
    """Einstein solid of lithium hydride: every coordinate a harmonic oscillator at its own place.

    The hydrogen temperature goes from 300 K to `hydrogen`, all of it by `heating` K besides.
    """
    atoms = bulk("LiH", "rocksalt", a=4.08, cubic=True) * (3, 3, 3)
    rng = np.random.default_rng(1)
    t = 5.0 * np.arange(frames)
    progress = (t / t[-1])[:, None, None]
    temperature = np.where(atoms.numbers == 1, hydrogen, 300)[None, :, None]
    temperature = 300 + (temperature - 300 + heating) * progress
    frequency = rng.uniform(0.05, 0.4, (len(atoms), 3))  # rad/fs
    phase = frequency * t[:, None, None] + rng.uniform(0, 2 * np.pi, (len(atoms), 3))
    size = np.sqrt(2 * units.kB * temperature * units.fs**2 / atoms.get_masses()[:, None])
    x = atoms.positions + 0.3 * size / frequency * np.sin(phase)  # small: nothing breaks
    v = size * np.cos(phase)
    v -= np.einsum("a,fax->fx", atoms.get_masses(), v)[:, None] / atoms.get_masses().sum()
    x -= np.einsum("a,fax->fx", atoms.get_masses(), x)[:, None] / atoms.get_masses().sum()
    return Trajectory(atoms, t, x, momenta_from_velocities(v, atoms.get_masses()))


def test_nothing_to_warn_of() -> None:
    summary = trust_summary(thermal_crystal())
    assert summary.ok and summary.warnings == ()
    assert summary.frames == 400 and summary.end_fs == 1995
    assert summary.temperature.mean == pytest.approx(300, rel=0.05)
    for element in summary.elements.values():
        assert element.last == pytest.approx(300, rel=0.08)
    assert summary.centre_of_mass_drift < 1e-9
    assert summary.angular_momentum_drift is None
    assert "Trust: no warnings" in str(summary) and "WARNING" not in str(summary)


def test_hot_hydrogen_is_noticed() -> None:
    summary = trust_summary(thermal_crystal(hydrogen=480))
    (text,) = [w for w in summary.warnings if "equipartition" in w]
    # In the last fifth hydrogen is on average at 300 + 0.9 * 180 K.
    share = int(text.split("element H is ")[1].split(" %")[0])
    assert share == pytest.approx(54, abs=8)
    assert "hotter than Li" in text and text in str(summary)


def test_heating_is_noticed_and_measured() -> None:
    summary = trust_summary(thermal_crystal(heating=200, hydrogen=300))
    assert summary.temperature_drift == pytest.approx(200 / 1.995, rel=0.05)
    assert summary.temperature.first == pytest.approx(320, rel=0.05)
    assert summary.temperature.last == pytest.approx(480, rel=0.05)
    (text,) = summary.warnings
    assert "temperature rose by" in text


def test_a_small_hot_molecule_is_within_chance() -> None:
    """Nine atoms scatter: what would be alarming in a crystal is nothing in 100 fs of ethanol."""
    atoms = molecule("CH3CH2OH")
    v = drawn(atoms, 1, 300)
    x = np.repeat(atoms.positions[None], 100, axis=0)
    p = momenta_from_velocities(np.repeat(v, 100, axis=0), atoms.get_masses())
    summary = trust_summary(Trajectory(atoms, np.arange(100.0), x, p))
    assert not any("equipartition" in w or "temperature" in w for w in summary.warnings)
    assert summary.temperature_drift == pytest.approx(0, abs=1e-6)


def test_water_counts_the_freedom_each_atom_has() -> None:
    """Oxygen hardly moves in a lone water molecule; it is not cold for that."""
    atoms = molecule("H2O")
    v = drawn(atoms, 3000, 500)
    x = np.repeat(atoms.positions[None], len(v), axis=0)
    summary = trust_summary(
        Trajectory(
            atoms,
            np.arange(len(v)) * 10.0,
            x + 1e-9 * np.arange(len(v))[:, None, None],
            momenta_from_velocities(v, atoms.get_masses()),
        )
    )
    assert summary.elements["O"].mean == pytest.approx(500, rel=0.06)
    assert summary.elements["H"].mean == pytest.approx(500, rel=0.06)


def test_broken_conservation_is_noticed() -> None:
    atoms = molecule("CH3CH2OH")
    v = drawn(atoms, 1, 300)[0]
    t = np.arange(50.0)
    still = np.broadcast_to(v, (50, 9, 3))
    x = np.repeat(atoms.positions[None], 50, axis=0)
    pushed = x + 2e-4 * t[:, None, None] ** 2
    summary = trust_summary(
        Trajectory(atoms, t, pushed, momenta_from_velocities(still, atoms.get_masses()))
    )
    assert summary.centre_of_mass_drift > 0.4
    assert any("momentum is not conserved" in w for w in summary.warnings)

    turning = v + 1e-3 * t[:, None, None] * np.cross([0, 0, 1.0], atoms.positions)
    summary = trust_summary(
        Trajectory(atoms, t, x, momenta_from_velocities(turning, atoms.get_masses()))
    )
    assert summary.angular_momentum_drift is not None and summary.angular_momentum_drift > 0.05
    assert any("angular momentum changed" in w for w in summary.warnings)


def test_bonds_are_reported() -> None:
    atoms = molecule("H2O")
    x = np.repeat(atoms.positions[None], 100, axis=0)
    x[:, 1] += np.linspace(0, 1, 100)[:, None] * np.array([0, 1.5, 0])
    trajectory = moving(atoms, x)
    summary = trust_summary(trajectory)
    (change,) = summary.broken
    assert change.atoms == (0, 1) and change.elements == ("O", "H")
    (exact,) = bond_changes(trajectory).broken
    assert exact.time_fs <= change.time_fs < exact.time_fs + 5
    assert any(w.startswith("1 bond broke: O0-H1 at") for w in summary.warnings)
    assert summary.lonely_atoms == ()


@pytest.mark.parametrize("pbc", [False, True])
def test_frames_are_watched_together_as_one_by_one(pbc: bool) -> None:
    atoms = molecule("CH3CH2OH", cell=[7, 8, 9], pbc=pbc)
    rng = np.random.default_rng(0)
    steps = rng.normal(scale=0.04, size=(60, 9, 3))
    x, t = atoms.positions + np.cumsum(steps, axis=0), 10.0 * np.arange(60)
    together, single = BondWatch(atoms, x[0]), BondWatch(atoms, x[0])
    together.update(t, x)
    for k in range(60):
        single.update(t[k : k + 1], x[k : k + 1])
    changes = together.changes()
    assert changes == single.changes() and changes.broken and changes.formed
    x[40, 3] = x[40, 4]
    refused = BondWatch(atoms, x[0])
    with pytest.raises(ValueError, match="coincide"):
        refused.update(t, x)
    assert refused.changes() == ((), ())


@pytest.mark.parametrize("pbc", [False, True])
def test_lonely_atoms_are_reported(pbc: bool) -> None:
    """An atom that goes away and comes back: alone while farther than the cutoff from the rest."""
    atoms = molecule("H2O", cell=[30, 30, 30], pbc=pbc)
    x = np.repeat(atoms.positions[None], 100, axis=0)
    x[:, 1, 1] += 6 * np.sin(np.linspace(0, np.pi, 100))
    farthest = np.linalg.norm(x[:, 1] - x[:, 0], axis=1).max()
    trajectory = moving(atoms, x)
    summary = trust_summary(trajectory, cutoff=5.0)
    assert farthest > 5.5 and summary.lonely_atoms == (1,)
    assert any("1 atom had no neighbour" in w and "H1" in w for w in summary.warnings)
    assert trust_summary(trajectory, cutoff=farthest + 0.1).lonely_atoms == ()
    assert trust_summary(trajectory).lonely_atoms == ()
    with pytest.raises(ValueError, match="cutoff"):
        TrustMonitor(atoms, cutoff=-1.0)


def test_a_run_that_breaks_down() -> None:
    good = thermal_crystal(frames=60)
    for ruin in (np.nan, np.inf):
        x = good.positions.copy()
        x[31:, 5, 2] = ruin
        summary = trust_summary(Trajectory(good.atoms, good.times, x, good.momenta))
        assert summary.unusable_from_fs == good.times[31] and summary.frames == 31
        assert "broke down" in summary.warnings[0]
        assert np.isfinite(summary.temperature.mean)
    x = good.positions.copy()
    x[40, 3] = x[40, 4]
    summary = trust_summary(Trajectory(good.atoms, good.times, x, good.momenta))
    assert summary.unusable_from_fs == good.times[40]
    with pytest.raises(ValueError, match="atom 5 has a position"):
        x[0, 5, 1] = np.nan
        trust_summary(Trajectory(good.atoms, good.times, x, good.momenta))


@pytest.mark.parametrize("sizes", [[1], [2], [7], [100, 1, 299], [400]])
@pytest.mark.parametrize("system", ["crystal", "molecule"])
def test_chunks_do_not_matter(system: str, sizes: list[int]) -> None:
    """To the last bit: a run that is resumed has other chunks, and the same summary."""
    whole = thermal_crystal(hydrogen=480)
    if system == "molecule":
        atoms = molecule("CH3CH2OH")
        x = atoms.positions + np.random.default_rng(0).normal(scale=0.01, size=(400, 9, 3))
        p = momenta_from_velocities(drawn(atoms, 400, 300), atoms.get_masses())
        whole = Trajectory(atoms, 1.3 * np.arange(400), x, p)
    monitor, start = TrustMonitor(whole.atoms, cutoff=2.0), 0
    while start < len(whole):
        for size in sizes:
            part = whole[start : start + size]
            monitor.update(part.times, part.positions, part.momenta)
            start += size
    assert monitor.summary() == trust_summary(whole, cutoff=2.0)


def test_block_means_are_bounded_and_exact() -> None:
    whole = thermal_crystal(frames=1000)
    monitor = TrustMonitor(whole.atoms)
    monitor.update(whole.times, whole.positions, whole.momenta)
    assert len(monitor._blocks.full) < 128
    m, v = whole.atoms.get_masses(), whole.velocities
    freedom = degrees_of_freedom(whole.atoms)
    expected = kinetic_temperature(v, m, freedom)
    assert monitor.summary().temperature.mean == pytest.approx(expected.mean(), rel=1e-10)
    assert monitor.summary().temperature.first == pytest.approx(expected[:200].mean(), rel=0.01)


@pytest.mark.parametrize("atoms", [molecule("H"), molecule("H2O")])
def test_single_frames_and_lone_atoms(atoms: Atoms) -> None:
    summary = trust_summary(moving(atoms, atoms.positions[None]))
    assert summary.ok
    text = json.dumps(summary.to_dict(), allow_nan=False)
    back = json.loads(text)
    assert back["ok"] is True and back["temperature_drift"] is None
    assert "nan" not in str(summary)
    assert ("not defined" in str(summary)) == (len(atoms) == 1)
    with pytest.raises(ValueError, match="no frame"):
        TrustMonitor(atoms).summary()


def test_to_dict_is_plain_json() -> None:
    summary = trust_summary(thermal_crystal(hydrogen=480))
    back = json.loads(json.dumps(summary.to_dict(), allow_nan=False))
    assert back["elements"]["H"]["last"] == summary.elements["H"].last
    assert back["warnings"] == list(summary.warnings) and back["ok"] is False
