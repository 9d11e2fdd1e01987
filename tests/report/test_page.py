"""The report of a run: what is in the page, and what becomes of damage."""

from __future__ import annotations

import base64
import json
import re

import cases
import numpy as np
import pytest

from mdtrajnet_fast import Trajectory, read_structure, simulate
from mdtrajnet_fast.analysis.observables import peaks
from mdtrajnet_fast.analysis.spectra import spectra
from mdtrajnet_fast.cli import main
from mdtrajnet_fast.report.movie import movie
from mdtrajnet_fast.report.page import write_report
from mdtrajnet_fast.report.verdict import duration, verdict


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of ethanol of 1.6 ps."""
    folder = tmp_path_factory.mktemp("runs") / "ethanol"
    settings = "--dt 2 --duration 1600 --equilibration 100 --quiet --output"
    assert main(["simulate", "ethanol", *settings.split(), str(folder)]) == 0
    return folder


def data_of(path):
    """What the page's scripts get."""
    text = re.search(r'<script type="application/json" id="data">(.*?)</script>', path.read_text())
    return json.loads(text[1])


def columns_of(chart):
    return {column["name"]: np.array(column["values"]) for column in chart["columns"]}


def test_simulate_makes_it(folder):
    page = (folder / "report.html").read_text()
    assert page.startswith("<!DOCTYPE html>") and len(page) < 5e6
    run = json.loads((folder / "run.json").read_text())
    for said in ("simulate ethanol --dt 2", run["model_hash"], run["versions"]["torch"]):
        assert said in page
    assert "<h1>molecules-nve</h1>" in page  # the card
    assert "Redistribution" in page  # the viewer's licence
    # nothing that a browser would load; namespaces, and addresses in scripts, load nothing
    assert 'http-equiv="Content-Security-Policy" content="default-src &#39;none&#39;' in page
    assert not re.findall(r'<(?:script|img|iframe)[^>]+src=|<link[^>]+href="(?!data:)', page)


def test_no_report(tmp_path):
    settings = "--duration 5 --equilibration 0 --quiet --no-report --output"
    assert main(["simulate", "water", *settings.split(), str(tmp_path / "a")]) == 0
    assert not (tmp_path / "a" / "report.html").exists()
    assert main(["report", str(tmp_path / "a")]) == 0  # too short for spectra
    page = (tmp_path / "a" / "report.html").read_text()
    assert "No spectrum: 5 fs resolve" in page


def test_charts_hold_the_numbers_of_the_run(folder):
    data = data_of(folder / "report.html")
    trajectory = Trajectory.read(folder / "trajectory.traj")
    charts = {chart["name"]: chart for chart in data["charts"]}
    assert [*charts] == "power-spectrum infrared-spectrum energies temperatures bands".split()
    found = spectra(trajectory)
    wavenumber, motion = columns_of(charts["power-spectrum"]).values()
    np.testing.assert_allclose(wavenumber, found.wavenumber, rtol=1e-5)
    np.testing.assert_allclose(motion, found.motion, rtol=1e-5)
    np.testing.assert_allclose(
        charts["power-spectrum"]["peaks"], peaks(found.wavenumber, found.motion), rtol=1e-5
    )
    assert all(
        "ethanol at" in chart["title"] and " K" in chart["title"] for chart in charts.values()
    )
    energies = columns_of(charts["energies"])
    each = -(-len(trajectory) // 500)
    kept = len(trajectory) // each * each
    mean = trajectory.kinetic_energies[:kept].reshape(-1, each).mean(1)
    np.testing.assert_allclose(energies["kinetic"], mean, rtol=1e-5)
    np.testing.assert_allclose(
        energies["total"], energies["kinetic"] + energies["potential"], rtol=1e-4
    )
    shares = [*columns_of(charts["bands"]).values()][1:]
    np.testing.assert_allclose(np.sum(shares, axis=0), 100, atol=2)
    temperatures = columns_of(charts["temperatures"])
    run = json.loads((folder / "run.json").read_text())
    assert {*temperatures} == {"time (ps)", "all", "H", "C", "O"}
    for name, said in {"all": run["trust"]["temperature"], **run["trust"]["elements"]}.items():
        np.testing.assert_allclose(temperatures[name].mean(), said["mean"], rtol=0.02)


def test_the_movie_is_the_run(folder):
    data = data_of(folder / "report.html")["movie"]
    trajectory = Trajectory.read(folder / "trajectory.traj")
    assert data["every"] == 1 and len(data["times"]) == len(trajectory)
    steps = np.frombuffer(base64.b64decode(data["positions"]), "<u2")
    found = data["origin"] + data["step"] * steps.reshape(len(trajectory), 9, 3)
    mass = trajectory.atoms.get_masses()
    centre = np.einsum("a,fax->fx", mass, trajectory.positions) / mass.sum()
    np.testing.assert_allclose(found, trajectory.positions - centre[:, None], atol=data["step"])
    assert data["step"] < 1e-3 and len(data["bonds"]) == 8


def test_the_movie_of_a_crystal_starts_in_its_cell_and_is_thinned():
    atoms = cases.diamond((2, 2, 2))
    steps = np.linspace(0, 30, 3001)[:, None, None] * [1, 0, 0]  # Å: beyond the cell
    positions = atoms.positions + 50 + steps
    run = Trajectory(atoms, np.arange(3001.0), positions, np.zeros_like(positions))
    data = movie(run)
    assert data["every"] == 2 and data["cell"] == atoms.cell[:].tolist()
    x = data["origin"] + data["step"] * np.frombuffer(
        base64.b64decode(data["positions"]), "<u2"
    ).reshape(-1, len(atoms), 3)
    inside = x[0] @ np.linalg.inv(atoms.cell[:])
    assert inside.min() > -1e-3 and inside.max() < 1.001
    np.testing.assert_allclose(x - x[0], steps[::2] + 0 * x, atol=2 * data["step"])


def test_periodic_runs_and_peptides_have_their_charts(tmp_path):
    cases.diamond((2, 2, 2)).write(tmp_path / "crystal.cif")
    settings = "--model diamond --dt 4 --duration 200 --equilibration 0 --thermostat csvr --quiet"
    folder = tmp_path / "crystal"
    command = ["simulate", str(tmp_path / "crystal.cif"), "--temperature", "300"]
    assert main([*command, *settings.split(), "--output", str(folder)]) == 0
    charts = {chart["name"]: chart for chart in data_of(folder / "report.html")["charts"]}
    assert {"rdf", "power-spectrum"} <= {*charts}
    assert "infrared-spectrum" not in charts and charts["temperatures"]["rules"] == [300]
    assert "total less heat" in columns_of(charts["energies"])

    folder = tmp_path / "peptide"
    settings = "--duration 10 --equilibration 0 --quiet --model molecules-nve-small --output"
    assert main(["simulate", "alanine dipeptide", *settings.split(), str(folder)]) == 0
    charts = {chart["name"]: chart for chart in data_of(folder / "report.html")["charts"]}
    (series,) = charts["ramachandran"]["series"]
    assert series["name"] == "at atom 4"


def test_reference(folder, tmp_path, capsys):
    other = tmp_path / "other.h5"
    simulate(
        read_structure("ethanol"), 2, duration=1300, temperature_K=200, seed=3, trajectory=other
    )
    page = tmp_path / "page.html"
    arguments = ["report", str(folder), "--reference", str(other), "--output", str(page)]
    assert main(arguments) == 0
    chart = data_of(page)["charts"][0]
    assert [series["name"] for series in chart["series"]] == ["this run", "reference"]
    w, run, reference = columns_of(chart).values()
    assert 0.5 < np.trapezoid(reference, w) < 1.01 and abs(run - reference).max() > 0
    assert main(arguments) == 2
    assert "never overwritten" in capsys.readouterr().err


def test_what_a_folder_says_is_text_and_not_html(folder, tmp_path):
    run = json.loads((folder / "run.json").read_text())
    run["structure"]["name"] = run["command"][1] = "</script><script>alert(1)</script>"
    run["trust"]["warnings"], run["trust"]["ok"] = ["<b>heat</b> & more"], False
    (tmp_path / "run.json").write_text(json.dumps(run))
    (tmp_path / run["trajectory"]).write_bytes((folder / run["trajectory"]).read_bytes())
    page = write_report(tmp_path).read_text()
    assert "<script>alert" not in page and "<b>heat" not in page
    assert "&lt;b&gt;heat&lt;/b&gt; &amp; more" in page
    assert page.count("</script>") == 3


def test_without_the_model_and_without_a_summary(folder, tmp_path):
    """As after a kill: the trust is found again; the infrared needs a model."""
    run = json.loads((folder / "run.json").read_text())
    trust = run.pop("trust")
    run["settings"]["model"] = "/nowhere"
    (tmp_path / "run.json").write_text(json.dumps(run))
    (tmp_path / run["trajectory"]).write_bytes((folder / run["trajectory"]).read_bytes())
    page = write_report(tmp_path)
    assert "The model is not at hand" in page.read_text()
    assert f"{trust['temperature']['mean']:.0f} K on average" in page.read_text()
    assert "infrared-spectrum" not in [chart["name"] for chart in data_of(page)["charts"]]


def test_refused(folder, tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    assert "no run.json" in capsys.readouterr().err
    run = json.loads((folder / "run.json").read_text())
    for broken, said in (
        ("{", "JSONDecodeError"),
        (json.dumps(run | {"trajectory": "../x.traj"}), "in the folder itself"),
        (json.dumps({"trajectory": "x.traj"}), "KeyError"),
        (json.dumps(run | {"structure": {"name": "x"}}), "KeyError"),
    ):
        (tmp_path / "run.json").write_text(broken)
        assert main(["report", str(tmp_path)]) == 2
        err = capsys.readouterr().err
        assert "does not describe a run" in err and said in err


def test_a_single_frame(folder, tmp_path):
    run = json.loads((folder / "run.json").read_text()) | {"trajectory": "one.h5"}
    Trajectory.read(folder / "trajectory.traj")[:1].write(tmp_path / "one.h5")
    (tmp_path / "run.json").write_text(json.dumps(run))
    data = data_of(write_report(tmp_path))
    assert [chart["name"] for chart in data["charts"]] == ["energies", "temperatures"]
    assert len(data["movie"]["times"]) == 1
    with pytest.raises(FileNotFoundError, match="no folder"):
        write_report(tmp_path, tmp_path / "nowhere" / "page.html")


def test_the_verdict_in_words(folder):
    trust = json.loads((folder / "run.json").read_text())["trust"]
    assert duration(1500) == "1.5 ps" and duration(999) == "999 fs"
    good = verdict(trust | {"ok": True, "warnings": []})
    assert good.ok and "to its end at 1.6 ps" in good.headline
    broken = {"atoms": [0, 3], "elements": ["C", "H"], "time_fs": 640.0, "length": 1.7}
    bad = verdict(
        trust | {"ok": False, "warnings": ["heat"], "believable_fs": 500.0, "broken": [broken]}
    )
    assert "up to 500 fs of 1.6 ps" in bad.headline and bad.warnings == ("heat",)
    assert dict(bad.checks)["Bonds"] == "1 of 8 broke: C-H of atoms 0 and 3 at 640 fs"
    never = verdict(trust | {"ok": False, "warnings": ["heat"], "believable_fs": 0.0})
    assert never.headline == "Do not believe this run."
