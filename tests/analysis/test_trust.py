"""Trust in rollouts: a molecule of harmonic vibrations whose energies are given."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from ase.build import molecule
from ase.units import fs, kB

from mdtrajnet_fast import Trajectory
from mdtrajnet_fast.analysis.equipartition import (
    BandWatch,
    chance_of_bands,
    chance_of_elements,
    chance_of_stretches,
    occupied_bands,
    strongest_band,
)
from mdtrajnet_fast.analysis.observables import WAVENUMBER
from mdtrajnet_fast.analysis.trust import TrustMonitor, Unsure, trust_summary
from mdtrajnet_fast.mechanics import momenta_from_velocities

ETHANOL = molecule("CH3CH2OH")
DT = 2.0


def vibrating(
    energies, frames: int = 2501, seed: int = 0, envelope=1.0, metadata=None
) -> Trajectory:
    """Ethanol whose 21 vibrations have these energies (in kB K, each kB T on average).

    energies: [21], or [frames, 21]. envelope: [frames] or a number, times all velocities.
    """
    rng = np.random.default_rng(seed)
    atoms, root = ETHANOL.copy(), np.sqrt(ETHANOL.get_masses())[:, None]
    r = atoms.positions - atoms.get_center_of_mass()
    rigid = [root * np.eye(3)[k] for k in range(3)] + [
        root * np.cross(np.eye(3)[k], r) for k in range(3)
    ]
    start = np.concatenate([np.stack(rigid).reshape(6, -1), rng.normal(size=(21, 27))])
    modes = np.linalg.qr(start.T)[0][:, 6:].T  # [21, 27], no rigid motion
    t = DT * np.arange(frames)
    wavenumber = np.concatenate([rng.uniform(250, 1600, 15), rng.uniform(2800, 3700, 6)])
    w = 2 * np.pi * wavenumber / WAVENUMBER
    phase = w * t[:, None] + rng.uniform(0, 2 * np.pi, 21)
    size = np.sqrt(2 * kB * np.broadcast_to(energies, (frames, 21))) * fs  # sqrt(amu) Å/fs
    v = ((size * np.cos(phase)) @ modes).reshape(frames, 9, 3) / root
    x = ((size / w * np.sin(phase)) @ modes).reshape(frames, 9, 3) / root
    v = v * np.broadcast_to(envelope, frames)[:, None, None]
    return Trajectory(
        atoms,
        t,
        atoms.positions + 0.01 * x,  # so small that it does not turn
        momenta_from_velocities(v, atoms.get_masses()),
        metadata,
    )


def test_bands_of_two_lines():
    t = 1.3 * np.arange(4000)
    v = np.zeros((4000, 2, 3))
    for atom, (wavenumber, size) in enumerate(((900.0, 3.0), (2500.0, 1.0))):
        v[:, atom, 1] = np.sqrt(size) * np.cos(2 * np.pi * wavenumber / WAVENUMBER * t)
    watch, masses = BandWatch(np.ones(2)), np.ones(2)
    watch.update(t, v)
    middles, spectra, weights = watch.means()
    assert len(middles) == len(spectra) > 5
    share, where = strongest_band(weights @ spectra, watch.bin)
    inside = 0.87  # of a line that a stretch of 1 ps widens
    assert share == pytest.approx(0.75 * inside, abs=0.01)
    assert where == pytest.approx(900, abs=15)
    occupied = occupied_bands(weights @ spectra, watch.bin)
    assert occupied == pytest.approx(1 / (0.75**2 + 0.25**2) / inside**2, rel=0.05)
    parts = BandWatch(masses)
    for k in range(0, 4000, 7):
        parts.update(t[k : k + 7], v[k : k + 7])
    np.testing.assert_array_equal(parts.means()[1], spectra)
    for times in (t + 0.2 * np.sin(t), 25 * t):  # uneven, and too far apart
        watch = BandWatch(masses)
        watch.update(times, v)
        assert len(watch.means()[0]) == 0


def test_chances():
    """One run in a hundred of exponential energies falls below its own hundredth."""
    rng = np.random.default_rng(5)
    for modes in (3, 9, 21):
        energy = rng.exponential(size=(4000, modes))
        share = energy / energy.sum(1, keepdims=True)
        chances = [chance_of_bands(x, modes) for x in 1 / (share**2).sum(1)]
        assert np.mean(np.array(chances) < 0.01) == pytest.approx(0.01, abs=0.006)
        assert np.median(chances) == pytest.approx(0.5, abs=0.05)
    for share, rare in ((6 / 21, False), (0.02, True), (0.8, True)):
        power = np.array([1 - share, 0, 0, 0, 0, share, 0, 0])  # bins of 600 cm^-1
        chance = chance_of_stretches(power, 600.0, 6, 21)
        assert (chance < 1e-3) == rare and (chance > 0.8) == (not rare)
        below = (rng.beta(6, 15, size=100_000) < share).mean()
        assert chance == pytest.approx(2 * min(below, 1 - below), abs=0.02)
    assert chance_of_stretches(power[:6], 600.0, 6, 21) == 1  # does not reach so far
    assert chance_of_stretches(power, 600.0, 0, 21) == 1
    assert chance_of_bands(1.0, 21) < 1e-4 and chance_of_bands(21.0, 21) == 1
    assert chance_of_elements([300, 300, 300], [10, 5, 3]) > 0.5
    assert chance_of_elements([300, 10, 300], [10, 5, 3]) < 1e-3
    assert chance_of_elements([300, 3000, 300], [100, 50, 30]) < 1e-9
    assert chance_of_elements([300.0], [10]) == 1


def test_equilibrium_is_believed():
    """Energies as chance has them: hardly ever a warning, of a picosecond or of many."""
    for frames in (501, 2501):
        doubted = [
            not trust_summary(
                vibrating(300 * np.random.default_rng(seed).exponential(size=21), frames, seed)
            ).ok
            for seed in range(40)
        ]
        assert sum(doubted) <= 2


@pytest.mark.parametrize("frames", [501, 2501])
def test_a_collapsed_run_is_noticed(frames):
    """Two vibrations hold all energy, at an unremarkable temperature."""
    for seed in range(10):
        energies = np.full(21, 3.0)
        energies[[3, 11]] = 21 * 300 / 2
        summary = trust_summary(vibrating(energies, frames, seed))
        assert not summary.ok and "energy is not spread as at equilibrium" in str(summary)
        assert summary.believable_fs == 0
        assert str(summary).startswith("Trust: NOT believable, ")
        assert summary.occupied_bands == pytest.approx(2 / 0.87**2, abs=0.6)
        assert summary.strongest_band[0] == pytest.approx(0.5 * 0.87, abs=0.03)


def test_cold_stretches_are_noticed():
    """What plain windows do: stretches fade, the rest takes their energy, and much of it moves."""
    energies = np.full(21, 400.0)
    energies[15:] = 8.0
    summary = trust_summary(vibrating(energies))
    assert not summary.ok and summary.occupied_bands > 9
    assert "energy is not spread as at equilibrium" in str(summary)
    assert "stretches of bonds to hydrogen hold 1 %, of 29 %" in str(summary)


def test_until_when_to_believe_a_run():
    energies = np.full((5001, 21), 300.0)
    late = DT * np.arange(5001) > 6000
    energies[late] = 3.0
    energies[late, 3] = 21 * 300
    summary = trust_summary(vibrating(energies, 5001))
    assert 5000 <= summary.believable_fs <= 7000
    first = str(summary).splitlines()[0]
    assert first.startswith(f"Trust: NOT believable beyond {summary.believable_fs:g} of 10000 fs, ")
    whole = trust_summary(vibrating(np.full(21, 300.0), 5001))
    assert str(whole).startswith("Trust: no warnings, believable to its end at 10000 fs")


def test_runs_that_are_locked_to_the_window_are_noticed():
    t = DT * np.arange(2501)
    envelope = 1 + 0.1 * np.cos(2 * np.pi * t / 12)
    for window, doubted in ((12.0, True), (9.0, False), (None, False)):
        metadata = {} if window is None else {"window_fs": window}
        summary = trust_summary(vibrating(np.full(21, 300.0), envelope=envelope, metadata=metadata))
        assert any("locked to the window" in w for w in summary.warnings) == doubted
        assert (summary.phase_spread is not None) == doubted
    assert (
        trust_summary(vibrating(np.full(21, 300.0), metadata={"window_fs": 12.0})).phase_spread
        < 0.02
    )


def test_heating_from_the_start_is_noticed():
    """Within the first fifth already, which then is as hot as the last."""
    t = DT * np.arange(2501)
    envelope = np.where(t < 300, 1.0, 1.2)
    summary = trust_summary(vibrating(np.full(21, 300.0), envelope=envelope))
    (text,) = summary.warnings
    assert "at 100 to 300 fs" in text and summary.believable_fs == 300


def with_energies(run, potential, metadata=None):
    return Trajectory(run.atoms, run.times, run.positions, run.momenta, metadata, potential)


def test_the_total_energy_is_watched():
    run = vibrating(np.full(21, 300.0))

    def drifting(slope, metadata=None):
        return with_energies(run, 7 - run.kinetic_energies + slope * run.times, metadata)

    summary = trust_summary(drifting(0.0))
    assert summary.ok and summary.energy_change == pytest.approx(0, abs=1e-9)
    assert summary.energies.total == pytest.approx(7, abs=1e-9)
    assert summary.energies.drift == pytest.approx(0, abs=1e-6)
    summary = trust_summary(drifting(1e-4))
    assert summary.energy_change == pytest.approx(0.44, abs=0.01)  # 4500 fs less 100
    assert any("the total energy left that of the start by +0.4" in w for w in summary.warnings)
    found, kinetic = summary.energies, run.kinetic_energies.mean()
    assert found.drift == pytest.approx(1e6 * 1e-4 / 9, rel=1e-9)  # meV per atom and ps
    assert found.kinetic == pytest.approx(kinetic, rel=1e-12)
    assert found.total == pytest.approx(7 + 0.25, rel=1e-12)
    assert found.potential == pytest.approx(7.25 - kinetic, rel=1e-12)
    assert (
        f"  total energy        7.250 eV on average, potential {7.25 - kinetic:.3f} and "
        f"kinetic {kinetic:.3f}; drift +11.111 meV per atom and ps\n"
    ) in str(summary)
    assert summary.to_dict()["energies"]["drift"] == found.drift
    monitor, drifts = TrustMonitor(run.atoms), drifting(1e-4)
    for k in range(0, 2501, 13):
        part = drifts[k : k + 13]
        monitor.update(part.times, part.positions, part.momenta, part.potential_energies)
    assert monitor.summary() == summary
    # a thermostat changes the total energy; nothing is known of its heat
    warmed = trust_summary(drifting(1e-4, {"thermostat": "csvr", "temperature_K": 300.0}))
    assert warmed.energies == dataclasses.replace(found, drift=None)
    assert warmed.energy_change is warmed.unexplained_work is None
    assert not any("total energy" in text for text in warmed.warnings)
    assert "kinetic " in str(warmed) and "drift" not in str(warmed).split("total energy")[1][:80]


def test_the_total_energy_less_heat_is_watched():
    """With a thermostat: what it puts in is no drift, what it does not account for is one."""
    run = vibrating(np.full(21, 300.0))
    metadata = {"thermostat": "csvr", "temperature_K": 300.0}
    heat = np.cumsum(np.random.default_rng(0).normal(0, 0.1, len(run)))

    def heated(slope, heat, times=run.times):
        potential = 7 - run.kinetic_energies + slope * times + heat
        state = times, run.positions, run.momenta
        return Trajectory(run.atoms, *state, metadata, potential, heat)

    summary = trust_summary(heated(0.0, heat))
    assert summary.ok and summary.energy_change == pytest.approx(0, abs=1e-9)
    assert summary.energies.drift == pytest.approx(0, abs=1e-6)
    assert summary.energies.total == pytest.approx(7 + heat.mean(), rel=1e-12)
    assert summary.energies.heat == summary.to_dict()["energies"]["heat"] == heat[-1]
    assert summary.unexplained_work is None

    drifts = heated(1e-4, heat)
    summary = trust_summary(drifts)
    assert summary.energies.drift == pytest.approx(1e6 * 1e-4 / 9, rel=1e-6)
    assert summary.energy_change == pytest.approx(0.44, abs=0.01)
    (text,) = summary.warnings
    assert text.startswith("the total energy less the heat put in left that of the start by +0.4")
    total = f"potential {np.mean(drifts.potential_energies):.3f} and kinetic "
    assert f"{total}{run.kinetic_energies.mean():.3f}\n" in str(summary)
    assert (
        f"  heat put in      {heat[-1]:+8.3f} eV by the end; drift of the total energy less heat "
        "+11.111 meV per atom and ps\n  its last fifth     +0.442 eV beside the first 200 fs\n"
    ) in str(summary)
    # as far in twenty times the time, and as fast
    slow, fast = (trust_summary(heated(slope, heat, 20 * run.times)) for slope in (5e-6, 1e-4))
    assert slow.ok and slow.energy_change == pytest.approx(0.45, abs=0.01)
    assert any("the total energy less the heat put in left" in text for text in fast.warnings)
    # as far, but by chance
    walk = np.cumsum(np.random.default_rng(2).normal(0, 0.44 / 2501**0.5, 2501))
    state = run.times, run.positions, run.momenta
    energies = drifts.potential_energies + walk - 1e-4 * run.times
    wandering = trust_summary(Trajectory(run.atoms, *state, metadata, energies, heat))
    assert wandering.ok and abs(wandering.energy_change) > 0.3
    monitor = TrustMonitor(run.atoms, thermostat_K=300.0)
    for k in range(0, 2501, 13):
        part = drifts[k : k + 13]
        monitor.update(part.times, part.positions, part.momenta, **part.scalars)
    assert monitor.summary() == summary
    one = trust_summary(heated(0.0, heat)[:1])
    assert one.energies.drift is None and one.energies.heat == heat[0]
    with pytest.raises(ValueError, match="have heat, those before had no"):
        state = run.times[:1] + 1e5, run.positions[:1], run.momenta[:1]
        bare = TrustMonitor(run.atoms)
        bare.update(run.times, run.positions, run.momenta)
        bare.update(*state, heat=[1.0])
    heat[3] = np.nan
    summary = trust_summary(heated(0.0, heat))
    assert summary.warnings == ("the potential energy or the heat at 6 fs is not a finite number",)


def test_energies_of_all_frames_or_none():
    run = vibrating(np.full(21, 300.0), 20)
    energies = np.zeros(20)
    assert trust_summary(run).energies is None and "total energy" not in str(trust_summary(run))
    assert trust_summary(with_energies(run, energies)[:1]).energies.drift is None
    for first, message in (
        (None, "from 20 fs on have potential .* before had no"),
        (energies[:10], "from 20 fs on have no potential .* before had:"),
    ):
        monitor = TrustMonitor(run.atoms)
        monitor.update(run.times[:10], run.positions[:10], run.momenta[:10], first)
        with pytest.raises(ValueError, match=message):
            monitor.update(
                run.times[10:],
                run.positions[10:],
                run.momenta[10:],
                energies[10:] if first is None else None,
            )
    energies[7] = np.nan
    summary = trust_summary(with_energies(run, energies))
    assert summary.warnings == ("the potential energy at 14 fs is not a finite number",)
    assert summary.frames == 20 and summary.believable_fs == 14
    assert summary.energies.total == pytest.approx(np.delete(run.kinetic_energies, 7).mean())
    late = trust_summary(with_energies(run, energies)[7:])
    assert late.believable_fs == 14 and late.energies.potential == pytest.approx(0, abs=1e-12)
    assert trust_summary(with_energies(run, np.full(20, np.inf))).energies is None


def test_work_that_the_potential_does_not_do_is_watched():
    """A potential that gives the kinetic energy a part of what it gains, and loses that part."""
    run = vibrating(np.full(21, 300.0))
    for done, believed in ((1.0, True), (0.95, True), (0.4, False)):
        summary = trust_summary(with_energies(run, -done * run.kinetic_energies))
        assert summary.unexplained_work == pytest.approx(1 - done, abs=1e-6)
        assert summary.ok == believed
    assert "the potential leaves 60 % of the changes" in summary.warnings[-1]
    apart = Trajectory(run.atoms, run.times[::5], run.positions[::5], run.momenta[::5])
    assert trust_summary(with_energies(apart, np.zeros(501))).unexplained_work is None


def test_what_the_model_knows_of_its_errors():
    """Asked for now and then, shown for each atom, and warned of where it is more than usual."""
    run = vibrating(np.full(21, 300.0), 1001)
    asked = []

    def errors(x):
        asked.append(len(x))
        return np.tile(np.linspace(0.01, 0.09, 9), (len(x), 1))

    for usual, warned in ((0.1, 0), (0.075, 2)):
        monitor = TrustMonitor(run.atoms, unsure=Unsure(errors, usual))
        asked.clear()
        for k in range(0, 1001, 100):
            part = slice(k, k + 100)
            monitor.update(run.times[part], run.positions[part], run.momenta[part])
        assert sum(asked) == 9  # of two picoseconds
        summary = monitor.summary()
        np.testing.assert_allclose(summary.force_errors, np.linspace(0.01, 0.09, 9))
        assert "0.090 of atom 8" in str(summary)
        texts = [text for text in summary.warnings if "in the forces on" in text]
        assert bool(texts) == bool(warned)
        for text in texts:
            assert f"up to 0.09 eV/Å in the forces on {warned} atoms" in text and "H8, H7" in text
