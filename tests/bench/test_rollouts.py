"""The benchmark of rollouts beside molecular dynamics: its measures, and all of it on water."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import cases
import numpy as np
import pytest

from mdtrajnet_fast import Trajectory
from mdtrajnet_fast.system import System


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[2] / "bench")
    import rollouts

    return rollouts


def run(bench, monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["rollouts.py", *map(str, words)])
    bench.main()


def test_distances_of_spectra(bench):
    """A line that is shifted as a whole is as far away as it is shifted."""
    w = np.linspace(0, bench.HIGHEST, 1001)  # 4 cm^-1
    line = np.exp(-(((w - 1000) / 30) ** 2))
    line /= line.sum()
    assert bench.distance(line, line) == (pytest.approx(1), pytest.approx(0))
    r, apart = bench.distance(line, np.roll(line, 100))
    assert abs(r) < 0.1 and apart == pytest.approx(400, rel=1e-6)


def test_verlet_conserves_the_energy_of_the_potential(bench):
    model = cases.model(**cases.OWN, potential={"radial": 5, "products": 6, "hidden": 9})
    atoms = [cases.hot("CH3CH2OH"), cases.hot("NH3")]
    times = 1.0 * np.arange(21)
    starts = [
        Trajectory(
            a, times, np.repeat(a.positions[None], 21, 0), np.repeat(a.get_momenta()[None], 21, 0)
        )
        for a in atoms
    ]
    for done, start in zip(bench.verlet(model, starts, 0.05), starts, strict=True):
        np.testing.assert_array_equal(done.positions[0], start.positions[0])
        kinetic = [frame.get_kinetic_energy() for frame in done]
        potential = [model.potential_energy(System.from_atoms(frame)).item() for frame in done]
        energies = np.add(potential, kinetic)
        assert np.ptp(energies) < 0.02 * np.ptp(kinetic)


def test_rollouts_of_water(bench, monkeypatch, tmp_path, capsys):
    made, out = tmp_path / "reference.h5", tmp_path / "compared"
    words = ["--starts", 2, "--duration", 2000, "--temperature", 200, "--molecules", "O"]
    run(bench, monkeypatch, "make", made, *words)
    run(bench, monkeypatch, "compare", made, "--output", out)
    text = capsys.readouterr().out
    assert "symplectic windows" in text and "2 ps from 2 starts" in text
    (row,) = csv.DictReader((out / "rollouts.csv").open())
    assert row["molecule"] == "O" and row["runs"] == "2" and row["bonds"] == "0"
    assert float(row["r"]) > 0.5 and 0.8 < float(row["T"]) < 1.2
    assert (out / "rollouts.png").stat().st_size > 1000
