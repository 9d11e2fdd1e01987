"""The benchmark of rollouts beside velocity Verlet: its dynamics, and all of it on water."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import cases
import numpy as np
import pytest
from ase import units
from ase.md.verlet import VelocityVerlet

from mdtrajnet_fast import MDtrajNetCalculator, simulate
from mdtrajnet_fast.data.records import load_records


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[2] / "bench")
    import rollouts

    return rollouts


def run(bench, monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["rollouts.py", *map(str, words)])
    bench.main()


def test_windows_of_verlet_steps_are_velocity_verlet(bench):
    """The native engine's path is that of ASE's integrator with the model's forces."""
    model = cases.gentle(**cases.OWN, **cases.WINDOW_POTENTIALS)
    atoms = cases.hot("CH3CH2OH")
    run = simulate(atoms, 1.0, duration=20, model=bench.verlet_model(model, 0.5))
    atoms.calc = MDtrajNetCalculator(model)
    moving = VelocityVerlet(atoms, 0.5 * units.fs)
    moving.run(40)
    np.testing.assert_allclose(run.positions[-1], atoms.positions, atol=1e-9)
    np.testing.assert_allclose(run.momenta[-1], atoms.get_momenta(), atol=1e-8)
    with pytest.raises(ValueError, match="no window potentials"):
        bench.verlet_model(cases.model(), 0.5)


def test_make(bench, monkeypatch, tmp_path):
    made = tmp_path / "reference.h5"
    run(bench, monkeypatch, "make", made, "--starts", 1, "--duration", 20, "--molecules", "O")
    (record,) = load_records(made)
    assert len(record.positions) == 11 and record.method == "GFN2-xTB (tblite)"


@pytest.mark.slow
def test_rivals_on_water(bench, monkeypatch, tmp_path, capsys, water_runs):
    out = tmp_path / "compared"
    monkeypatch.setattr(bench, "milliseconds", lambda ways: dict.fromkeys(ways, 12.0))
    run(bench, monkeypatch, "compare", water_runs, "--verlet", 1, "--output", out)
    rows = {row[""]: row for row in csv.DictReader((out / "rivals.csv").open())}
    rivals = ["symplectic windows of 3 fs", "velocity Verlet, 1 fs"]
    assert list(rows) == [*rivals, "halves of the reference"]
    for name in rivals:
        row = rows[name]
        assert row["ms_per_ps"] == "12.0" and row["changed"] == "0"
        assert float(row["r"]) > 0.5 and 0.8 < float(row["temperature"]) < 1.2
    table = (out / "rivals.md").read_text()
    assert table in capsys.readouterr().out and "| velocity Verlet, 1 fs | 12 |" in table
    assert (out / "velocity-Verlet-1-fs" / "spectra.png").exists()


def test_milliseconds(bench):
    model = cases.gentle(**cases.OWN, **cases.WINDOW_POTENTIALS)
    (cost,) = bench.milliseconds({"it": model}, rounds=1).values()
    assert 0 < cost < 1e5
