"""The benchmark of ensembles: the energy that windows conserve, and all of it on water."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
import pytest
from ase.build import molecule

from mdtrajnet_fast import load_model
from mdtrajnet_fast.analysis.observables import WAVENUMBER
from mdtrajnet_fast.train.compare_runs import modes_near


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[2] / "bench")
    import ensembles

    return ensembles


def test_shadow_of_velocity_verlet(bench):
    """Of steps of velocity Verlet kinetic over potential energy is 1 - (omega step)^2 / 4."""
    from verlet import verlet_model

    model, atoms = load_model("molecules-nve", dtype="float64"), molecule("CH3OH")
    modes = modes_near(model, atoms)
    for step in (0.5, 1.0):
        omega = 2 * np.pi * modes.wavenumbers / WAVENUMBER
        found = bench.shadow_ratios(verlet_model(model, step), atoms, modes)
        np.testing.assert_allclose(found[1:], 1 - (omega[1:] * step) ** 2 / 4, rtol=2e-3)
    own = bench.shadow_ratios(model, atoms, modes)  # far nearer to 1, with six times the step
    assert abs(own[1:] - 1).max() < 0.05 < 1 - found[-1]


def test_errors_are_those_of_blocks(bench):
    blocks = np.random.default_rng(0).normal(3.0, 2.0, (400, 5))
    found = bench.Estimate.of(blocks)
    np.testing.assert_allclose(found.error, 0.1, rtol=0.2)
    assert (abs(found.mean - 3.0) < 0.4).all()


def test_water(bench, monkeypatch, tmp_path, capsys):
    out = tmp_path / "tables"
    words = "--molecules O --replicas 4 --duration 900 --equilibration 90 --output"
    monkeypatch.setattr(sys, "argv", ["ensembles.py", *words.split(), str(out)])
    bench.main()
    text = (out / "ensembles.md").read_text()
    assert text in capsys.readouterr().out and "4 runs of 0.9 ps" in text
    tables = {path.stem: list(csv.DictReader(path.open())) for path in out.glob("*.csv")}
    assert {name: len(rows) for name, rows in tables.items()} == {
        "molecules": 1,
        "elements": 2,
        "modes": 3,
    }
    for row in tables["elements"] + tables["modes"] + tables["molecules"]:
        assert 0 < float(row["error_K"]) < 200
        assert abs(float(row["temperature_K"]) - 300) < 4 * float(row["error_K"]) + 60
    (row,) = tables["molecules"]
    assert row["freedom"] == "3" and abs(float(row["drift_meV_atom_ps"])) < 20
    assert float(row["spread_eV"]) < 0.03
    stretches = [float(row["omega_h"]) for row in tables["modes"][1:]]
    assert all(2.0 < x < 2.2 for x in stretches)
    with pytest.raises(SystemExit, match="never overwritten"):
        bench.main()
