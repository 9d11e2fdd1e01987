"""Comparisons of runs: figures of made-up lines and of runs that differ in a known way."""

import csv
import dataclasses

import ase
import numpy as np
import pytest
from ase.calculators.calculator import Calculator

from mdtrajnet_fast import Trajectory, load_model
from mdtrajnet_fast.data.records import load_records
from mdtrajnet_fast.train import compare_runs as module
from mdtrajnet_fast.train.compare_runs import (
    compare_runs,
    energy_drift,
    modes_near,
    peak_shifts,
    predicted_runs,
    reference_runs,
    wasserstein,
    width,
)

W = np.linspace(0, 4000, 1001)  # cm^-1


def line(centre):
    y = np.exp(-(((W - centre) / 30) ** 2))
    return y / y.sum()


@pytest.fixture(scope="module")
def model():
    return load_model("molecules-nve")


def water(path, **changes):
    return [dataclasses.replace(record, **changes) for record in load_records(path)]


def test_distances_of_spectra():
    """A line that is shifted as a whole is as far away as it is shifted."""
    assert wasserstein(W, line(1000), line(1000)) == 0
    assert wasserstein(W, line(1000), line(1400)) == pytest.approx(400, rel=1e-6)
    assert width(W, (line(1000) + line(3000)) / 2) == pytest.approx(2000, abs=150)
    two = line(1000) + 0.5 * line(3000)
    moved = line(1012) + 0.5 * line(2980) + 0.1 * line(400)
    np.testing.assert_allclose(peak_shifts(W, two, moved), [12, -20])
    assert len(peak_shifts(W, two, np.zeros_like(W))) == 0


def test_drift_of_a_known_energy():
    """Free flight up a slope: the total energy rises as the atoms do."""

    class Slope(Calculator):
        implemented_properties = ["energy"]

        def calculate(self, atoms, *_):
            self.results = {"energy": 0.2 * atoms.positions[:, 2].sum()}  # eV/Å

    t = 2.0 * np.arange(500)
    atoms = ase.Atoms("H2", [[0, 0, 0], [0, 0, 0.74]])
    up = 1e-4 * t[:, None, None] * np.array([0, 0, 1.0])  # 0.1 Å/ps
    run = Trajectory(atoms, t, atoms.positions + up, np.zeros((500, 2, 3)))
    assert energy_drift(run, Slope()) == pytest.approx(1000 * 0.2 * 0.1, rel=1e-6)


def test_modes_of_water(model):
    """Two stretches above a bend, from a start away from the minimum."""
    atoms = ase.Atoms("OH2", [[0, 0, 0.12], [0, 0.81, -0.5], [0, -0.76, -0.44]])
    lines = modes_near(model, atoms).wavenumbers
    assert 1300 < lines[0] < 1800 and (lines[1:] > 3300).all() and len(lines) == 3


def test_a_run_beside_itself(model, water_runs, tmp_path):
    records = water(water_runs)
    references = reference_runs(model, records, spacing=4)
    found = compare_runs(model, records, references, references, "same")
    table = found.tables["molecules"]
    assert table["molecule"] == ["O"] and table["runs"] == [2] and table["changed"] == [0]
    assert table["r"] == pytest.approx([1]) and table["temperature"] == pytest.approx([1])
    for name in ("W1_cm-1", "shift_cm-1", "element_error", "mode_error"):
        assert table[name] == [0]
    assert table["mode_error_halves"][0] > 0.01 and table["W1_cm-1_halves"][0] > 1
    # int16 positions and thinning aside the energies are the data's own
    assert abs(table["drift"][0] - table["drift_reference"][0]) < 0.3
    for name, count in (("elements", 2), ("modes", 3)):
        kelvin = found.tables[name]
        assert len(kelvin["molecule"]) == count
        np.testing.assert_array_equal(kelvin["reference_K"], kelvin["predicted_K"])
    found.write(tmp_path / "out")
    (row,) = csv.DictReader((tmp_path / "out" / "molecules.csv").open())
    assert float(row["r"]) == table["r"][0] and row["first_broken_ps"] == ""
    for name in ("spectra", "modes"):
        assert (tmp_path / "out" / f"{name}.png").stat().st_size > 1000
    assert "same: 2 runs of 1 molecules, 1.7 ps, frames every 4 fs" in str(found)


def test_hotter_runs_are_hotter_in_all(model, water_runs):
    records = water(water_runs, method=None)
    references = reference_runs(model, records)
    hot = [Trajectory(run.atoms, run.times, run.positions, 1.1 * run.momenta) for run in references]
    found = compare_runs(model, records, references, hot)
    table = found.tables["molecules"]
    assert table["r"] == pytest.approx([1]) and table["W1_cm-1"] == pytest.approx([0], abs=1e-6)
    assert table["temperature"] == pytest.approx([1.21])
    assert table["element_error"] == pytest.approx([0.21])
    modes = found.tables["modes"]
    np.testing.assert_allclose(modes["predicted_K"], 1.21 * np.array(modes["reference_K"]))
    assert table["drift"] == [None]
    assert any("missing" in note and "no method" in note for note in found.notes)


def test_runs_that_broke_down_are_counted(model, water_runs):
    records = water(water_runs)
    references = reference_runs(model, records)
    short = [references[0][:200], references[1]]
    table = compare_runs(model, records, references, short).tables["molecules"]
    assert table["changed"] == [1] and table["first_broken_ps"] == pytest.approx([0.398])
    assert table["r"] == pytest.approx([1])
    none = [run[:200] for run in references]
    found = compare_runs(model, records, references, none)
    assert found.tables["molecules"]["r"] == [None] and "Of 2 runs 2 broke" in str(found)


def test_missing_teacher_is_said(model, water_runs, monkeypatch):
    def lacks(method):
        raise ValueError(f"no {method} here")

    monkeypatch.setattr(module, "teacher", lacks)
    records = water(water_runs)
    references = reference_runs(model, records)
    found = compare_runs(model, records, references, references)
    assert "Energy drift: missing, no GFN2-xTB (tblite) here" in found.notes
    assert found.tables["molecules"]["drift"] == [None]


def test_runs_of_different_lengths(model, water_runs):
    records = water(water_runs)
    long, other = reference_runs(model, records, spacing=4)
    short = other[:20]
    alone = predicted_runs(model, [short])[0]
    for made, wanted in zip(predicted_runs(model, [long, short]), (long, short), strict=True):
        np.testing.assert_array_equal(made.times, wanted.times)
        np.testing.assert_array_equal(made.positions[0], wanted.positions[0])
    np.testing.assert_array_equal(made.positions, alone.positions)


def test_what_cannot_be_compared_is_named(model, water_runs):
    records = water(water_runs)
    where = f"{records[0].molecule}/traj00: "

    def refused(records, match, **settings):
        with pytest.raises(ValueError, match=match):
            reference_runs(model, records, **settings)

    refused(records, where + "226 frames .* give at least", duration=450)
    refused(records, where + "frames every 2 fs cannot be thinned to 3 fs", spacing=3)
    refused(records, where + "frames every 6 fs show wavenumbers up to", spacing=6)
    refused(water(water_runs, numbers=np.array([9, 1, 1])), where + ".* the elements F")
    slower = dataclasses.replace(records[1], frame_fs=4.0, trajectory="traj05")
    refused([records[0], slower], "traj05: frames every 4 fs, but those before every 2 fs")
