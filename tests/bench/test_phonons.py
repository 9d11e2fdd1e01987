"""The benchmark of long waves: what it starts and what it reads."""

from pathlib import Path

import numpy as np
import pytest
from ase.units import fs

from mdtrajnet_fast import Trajectory
from mdtrajnet_fast.analysis.observables import WAVENUMBER


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[2] / "bench")
    import phonons

    return phonons


def swinging(bench, wavenumbers: dict) -> Trajectory:
    """A bar whose waves have these frequencies (cm^-1)."""
    atoms = bench.bar(6)
    t = 4.0 * np.arange(400)
    v = np.zeros((len(t), len(atoms), 3))
    for wave, wavenumber in wavenumbers.items():
        turns = 2 * np.pi * wavenumber / WAVENUMBER * t
        v += bench.SPEED * np.cos(turns)[:, None, None] * wave.at(atoms)
    x = np.broadcast_to(atoms.positions, v.shape)
    return Trajectory(atoms, t, x, v / fs * atoms.get_masses()[:, None])


def test_waves_are_told_apart_and_their_frequencies_read(bench):
    given = {wave: 60.0 + 37.0 * k for k, wave in enumerate(bench.WAVES)}
    run = swinging(bench, given)
    np.testing.assert_allclose(run.velocities[0] / fs, bench.bar(6).get_velocities(), atol=1e-12)
    for wave, wavenumber in given.items():
        assert bench.frequency(run, wave) == pytest.approx(wavenumber, rel=1e-5)
        assert bench.amplitudes(run, wave)[0] == pytest.approx(bench.SPEED)


def test_the_bar_is_at_rest_as_a_whole(bench):
    atoms = bench.bar(4)
    assert len(atoms) == 2 * 2 * 4 * 8 and abs(atoms.get_momenta().sum(0)).max() < 1e-9
    assert atoms.get_velocities()[:, 1] == pytest.approx(0)  # no wave moves atoms along y
