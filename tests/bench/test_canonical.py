"""The benchmark of motions at constant temperature, on runs whose figures are known."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
import pytest
from ase.build import molecule

from mdtrajnet_fast import Trajectory
from mdtrajnet_fast.data.generate import generate
from mdtrajnet_fast.mechanics import degrees_of_freedom, thermal_velocities


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[2] / "bench")
    import canonical

    return canonical


def test_the_variance_of_canonical_velocities_is_one(bench):
    """Kinetic energies are gamma distributed; at one energy, as drawn velocities are, they are
    not."""
    atoms, rng = molecule("H2O"), np.random.default_rng(0)
    freedom = degrees_of_freedom(atoms)
    momenta = []
    for kelvin in 300.0 * rng.chisquare(freedom, 4000) / freedom:
        thermal_velocities(atoms, kelvin, rng)
        momenta.append(atoms.get_momenta())
    x = np.broadcast_to(atoms.positions, (4000, 3, 3))
    run = Trajectory(atoms, np.arange(4000.0), x, momenta)
    assert bench.variance([run], 300.0) == pytest.approx(1.0, abs=0.1)
    assert bench.variance([run[:2000], run[2000:]], 600.0) == pytest.approx(0.25, abs=0.03)


@pytest.fixture
def warm(tmp_path):
    path = tmp_path / "warm.h5"
    how = {"thermostat": "nose-hoover", "temperatures_K": [300.0], "step_fs": 0.5, "frame_fs": 4.0}
    generate(["N"], path, trajectories=2, duration_fs=1700.0, equilibration_fs=20.0, **how)
    return path


@pytest.mark.slow
def test_ammonia(bench, monkeypatch, tmp_path, capsys, warm):
    out = tmp_path / "tables"
    words = [str(warm), "--motion", "molecules-nve", "--output", str(out)]
    monkeypatch.setattr(sys, "argv", ["canonical.py", *words])
    bench.main()
    text = (out / "canonical.md").read_text()
    assert text in capsys.readouterr().out and "2 runs of 1.7 ps at 300 K, nose-hoover" in text
    rows = list(csv.DictReader((out / "canonical.csv").open()))
    assert [row["way"] for row in rows] == [
        "molecules-nve, CSVR of 100 fs",
        "molecules-nve, CSVR of 1000 fs",
        "molecules-nve, constant energy",
        "molecules-nve, plain",
        "molecules-nve, reversible",
        "molecules-nve, reversible, CSVR of 1000 fs",
        "halves of the reference",
    ]
    for row in rows:
        assert row["broke"] == "0" and row["molecule"] == "N"
        assert -1 <= float(row["r"]) <= 1 and 0.3 < float(row["temperature"]) < 3
        assert 0.05 < float(row["variance"]) < 20
    figures = {row["way"]: float(row["r"]) for row in rows}
    assert figures["molecules-nve, CSVR of 1000 fs"] > figures["molecules-nve, plain"]
    with pytest.raises(SystemExit, match="never overwritten"):
        bench.main()


def test_runs_at_constant_energy_are_refused(bench, monkeypatch, tmp_path):
    path = tmp_path / "cold.h5"
    generate(["O"], path, trajectories=1, duration_fs=20.0, equilibration_fs=0.0)
    monkeypatch.setattr(sys, "argv", ["canonical.py", str(path)])
    with pytest.raises(SystemExit, match="expected runs with a thermostat at one temperature"):
        bench.main()
