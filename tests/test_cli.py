"""The command line, in process: files, folders, messages."""

import csv
import io
import json
import re
import resource
import sys
from contextlib import suppress
from pathlib import Path

import ase.io
import cases
import numpy as np
import pytest
import torch
from ase.build import bulk, molecule
from ase.constraints import FixBondLength

from mdtrajnet_fast import Trajectory, load_model, read_structure, save_model, simulate
from mdtrajnet_fast.analysis.observables import WAVENUMBER, infrared_spectrum
from mdtrajnet_fast.cli import main
from mdtrajnet_fast.data.records import load_records
from mdtrajnet_fast.io.lock import Lock
from mdtrajnet_fast.md.thermostats import Langevin
from mdtrajnet_fast.mechanics import kinetic_temperature, momenta_from_velocities
from mdtrajnet_fast.model.checkpoint import BUNDLED


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run(text):
    assert main(text.split()) == 0


def refused(text, capsys):
    assert main(text.split()) == 2
    return capsys.readouterr().err


def test_simulate_writes_one_folder(tmp_path, capsys):
    run("simulate ethanol --dt 2 --duration 300 --equilibration 0 --quiet")
    folder = tmp_path / "ethanol-300K-unequilibrated"
    files = {"report.html", "run.json", "spectrum.csv", "spectrum.png", "trajectory.traj"}
    assert {p.name for p in folder.iterdir()} == files
    assert all((folder / name).stat().st_size > 100 for name in files)
    out = capsys.readouterr().out
    assert "Trust:" in out and "of H" in out and "peaks in cm^-1" in out
    frames = ase.io.read(folder / "trajectory.traj", ":")
    assert len(frames) == 151 and frames[0].get_chemical_formula() == "C2H6O"
    freedom = 21
    kinetic = 2 * frames[0].get_kinetic_energy() / (freedom * ase.units.kB)
    np.testing.assert_allclose(kinetic, 300, rtol=1e-10)
    table = np.loadtxt(folder / "spectrum.csv", delimiter=",", skiprows=1)
    assert table.shape[1] == 2 and 3900 < table[-1, 0] < 4500
    written = json.loads((folder / "run.json").read_text())
    assert written["settings"]["seed"] == 0 and written["trust"]["frames"] == 151
    run("simulate ethanol --dt 2 --duration 20 --equilibration 0 --quiet")
    assert (tmp_path / "ethanol-300K-unequilibrated-2").is_dir()


def test_what_a_model_is_not_for_is_refused_before_the_run(tmp_path, capsys):
    cases.diamond((2, 2, 2)).write("crystal.cif")
    bulk("Si", "diamond", a=5.43, cubic=True).write("silicon.cif")
    bulk("C", "diamond", a=3.566).write("primitive.cif")
    kept = set(tmp_path.iterdir())
    assert "is for isolated molecules" in refused("simulate crystal.cif", capsys)
    assert "periodic in three directions" in refused("simulate water --model argon", capsys)
    assert "does not know the elements Si" in refused(
        "simulate silicon.cif --model diamond", capsys
    )
    primitive = "simulate primitive.cif --model diamond"
    assert "mdtrajnet simulate --repeat 2" in refused(primitive, capsys)
    assert "got [2, 3]" in refused(f"{primitive} --repeat 2 3", capsys)
    assert "got [0]" in refused(f"{primitive} --repeat 0", capsys)
    assert "pbc = [False, False, False]" in refused("simulate water --repeat 2", capsys)
    assert set(tmp_path.iterdir()) == kept


def test_a_crystal_is_repeated(tmp_path):
    bulk("C", "diamond", a=3.566).write("C.cif")
    run("simulate C.cif --model diamond --repeat 2 3 4 --dt 4 --duration 8 --quiet --no-report")
    (trajectory,) = (tmp_path / "C-2x3x4-300K").glob("trajectory.traj")
    one, many = bulk("C", "diamond", a=3.566), ase.io.read(trajectory, 0)
    assert len(many) == 48
    np.testing.assert_allclose(many.cell.lengths(), one.cell.lengths() * (2, 3, 4), rtol=1e-6)
    run("simulate --resume C-2x3x4-300K --duration 16 --quiet --no-report")
    assert len(Trajectory.read(trajectory)) == 5


def test_run_json_is_enough_to_repeat_the_run(tmp_path):
    run("simulate water --dt 1 --duration 50 --seed 4 --temperature 400 --output a --quiet")
    written = json.loads((tmp_path / "a" / "run.json").read_text())
    start, settings = written["structure"] | written["before_equilibration"], written["settings"]
    atoms = ase.Atoms(start["numbers"], positions=start["positions_A"])
    atoms.set_momenta(start["momenta_ase"])
    names = ("dt", "duration", "model", "temperature_K", "seed", "equilibration")
    again = simulate(atoms, **{name: settings[name] for name in names})
    first = Trajectory.read(tmp_path / "a" / "trajectory.traj")
    np.testing.assert_array_equal(again.positions, first.positions)
    np.testing.assert_array_equal(written["structure"]["positions_A"], first.positions[0])
    np.testing.assert_array_equal(written["structure"]["momenta_ase"], first.momenta[0])
    (tmp_path / "a" / "trajectory.traj").unlink()
    run("simulate --resume a --quiet")
    np.testing.assert_array_equal(
        Trajectory.read(tmp_path / "a" / "trajectory.traj").positions, first.positions
    )


def test_times_are_numbers_of_femtoseconds(tmp_path, capsys):
    for words in ("simulate water --duration 10ps", "spectrum run --skip 1ps"):
        with pytest.raises(SystemExit):
            main(words.split())
        assert "is not a number of femtoseconds; for 10 ps give 10000" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_isotopes_are_refused_or_taken_for_their_elements(tmp_path, capsys):
    for text in ("[2H]O[2H]", "heavy.extxyz"):
        atoms = read_structure("water")
        atoms.set_masses([15.999, 2.014, 2.014])
        atoms.write("heavy.extxyz", columns=["symbols", "positions", "masses"])
        said = refused(f"simulate {text}", capsys)
        assert "H, has the mass 2.014" in said and "--masses standard" in said
        assert {p.name for p in tmp_path.iterdir()} == {"heavy.extxyz"}
    run(
        "simulate heavy.extxyz --masses standard --duration 10 --equilibration 0 --output h --quiet"
    )
    run("simulate water --duration 10 --equilibration 0 --output water --quiet")
    heavy, light = (Trajectory.read(tmp_path / x / "trajectory.traj") for x in ("h", "water"))
    np.testing.assert_allclose(heavy.positions, light.positions, atol=1e-7)
    run("simulate --resume h --duration 20 --quiet")
    run("generate [2H]O[2H] --trajectories 2 --duration 20 --equilibration 0 --output heavy.h5")
    record, _ = load_records("heavy.h5")
    assert sorted(record.masses.round(3)) == [2.014, 2.014, 15.999]
    told = "H, has the mass 2.0141 amu"
    assert told in refused("evaluate heavy.h5 --pairs 5 --times 1", capsys)
    assert told in refused("finetune molecules-nve-small heavy.h5 --output tuned", capsys)
    Path("train.toml").write_text('output = "t"\ndata = "heavy.h5"\nsteps = 2\n')
    assert told in refused("train train.toml", capsys)
    assert not Path("t").exists() and not Path("tuned").exists()
    run("evaluate heavy.h5 --pairs 5 --times 1 --masses standard")
    Path("train.toml").write_text(
        'output = "t"\ndata = "heavy.h5"\nmasses = "standard"\nsteps = 2\nbatch_size = 1\n'
    )
    run("train train.toml --quiet")
    Path("train.toml").write_text('output = "t"\ndata = "heavy.h5"\nmasses = "heavy"\n')
    assert "masses must be" in refused("train train.toml", capsys)


def test_thermostats(tmp_path, capsys):
    bath = "--thermostat langevin --friction 0.02 --equilibration 0"
    run(f"simulate water --dt 4 --duration 80 --temperature 400 {bath} --output a --quiet")
    atoms = read_structure("water")
    settings = {"temperature_K": 400, "thermostat": Langevin(400, 0.02), "model": "molecules-nve"}
    again = simulate(atoms, 4, duration=80, **settings)
    first = Trajectory.read(tmp_path / "a" / "trajectory.traj")
    np.testing.assert_array_equal(again.positions, first.positions)
    run("simulate --resume a --duration 160 --quiet")
    longer = Trajectory.read(tmp_path / "a" / "trajectory.traj")
    np.testing.assert_array_equal(
        longer.positions, simulate(atoms, 4, duration=160, **settings).positions
    )
    assert "csvr" in refused("simulate water --thermostat langevin --time-constant 5", capsys)
    assert "langevin" in refused("simulate water --friction 5", capsys)
    cases.hot("H2O").write("moving.extxyz")
    assert "--temperature" in refused("simulate moving.extxyz --thermostat csvr", capsys)
    assert "positive" in refused("simulate water --thermostat csvr --time-constant -1", capsys)


@pytest.mark.parametrize(
    "given, folder, said",
    [
        ("", "water-300K", "300 K, 1000 fs of equilibration (langevin) before frame 0; constant"),
        (
            "--temperature 250 --equilibration 30",
            "water-250K",
            "250 K, 30 fs of equilibration (langevin) before frame 0; constant energy",
        ),
        (
            "--thermostat csvr --temperature 400 --equilibration 0",
            "water-400K-csvr",
            "velocities drawn at 400 K; csvr at 400 K",
        ),
        ("--equilibration 0", "water-300K-unequilibrated", "drawn at 300 K, not equilibrated"),
    ],
)
def test_what_is_said_of_the_temperature(tmp_path, capsys, given, folder, said):
    """By the name of the folder, in run.json and in print."""
    run(f"simulate water --dt 3 --duration 30 {given} --quiet")
    assert said in capsys.readouterr().out
    assert said in json.loads((tmp_path / folder / "run.json").read_text())["temperature"]


@pytest.mark.slow
def test_runs_are_at_the_temperature_asked_for(tmp_path):
    """Without an option. Of water, whose 3 vibrations would be at some 190 K if nothing brought
    them there; one run is within 40 K of it."""
    kelvin = []
    for seed in range(6):
        run(f"simulate water --dt 3 --duration 3000 --seed {seed} --output {seed} --quiet")
        t = Trajectory.read(tmp_path / str(seed) / "trajectory.traj")
        kelvin.append(kinetic_temperature(t.velocities, t.atoms.get_masses(), 3).mean())
    assert np.mean(kelvin) == pytest.approx(300, abs=60)


@pytest.mark.parametrize("kind", ["traj", "extxyz", "h5"])
def test_resume_is_the_run_without_the_stop(tmp_path, kind):
    run(f"simulate NH3 --dt 3 --duration 95 --output whole --format {kind} --quiet")
    run(f"simulate NH3 --dt 3 --duration 40 --output parts --format {kind} --quiet")
    run("simulate --resume parts --duration 95 --quiet")
    whole, parts = (
        Trajectory.read(tmp_path / name / f"trajectory.{kind}") for name in ("whole", "parts")
    )
    for name in ("times", "positions", "momenta"):
        np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name))


def test_resume_keeps_the_settings_of_its_folder(tmp_path, capsys):
    run("simulate NH3 --dt 3 --duration 60 --output a --quiet")
    run("simulate --resume a --quiet")
    assert len(Trajectory.read(tmp_path / "a" / "trajectory.traj")) == 21
    assert json.loads((tmp_path / "a" / "run.json").read_text())["settings"]["duration"] == 60
    assert "--dt" in refused("simulate --resume a --dt 1", capsys)
    assert "water" in refused("simulate water --resume a", capsys)


def test_runs_of_before_reversible_windows_go_on_with_the_plain_map(tmp_path, capsys):
    run("simulate NH3 --dt 2 --duration 95 --method plain --output whole --quiet")
    run("simulate NH3 --dt 2 --duration 40 --method plain --output parts --quiet")
    run("simulate NH3 --dt 2 --duration 95 --output other --quiet")
    path = tmp_path / "parts" / "run.json"
    written = json.loads(path.read_text())
    for name in ("method", "energy_rate"):  # as 0.1.0 wrote it
        del written["settings"][name]
    path.write_text(json.dumps(written))
    run("simulate --resume parts --duration 95 --quiet")
    whole, parts, other = (
        Trajectory.read(tmp_path / name / "trajectory.traj") for name in ("whole", "parts", "other")
    )
    np.testing.assert_array_equal(parts.momenta, whole.momenta)
    assert abs(other.momenta[-1] - whole.momenta[-1]).max() > 1e-6
    assert "plain map" in refused("simulate NH3 --method plain --energy-rate 0.1", capsys)


def test_folders_of_runs_have_one_writer(tmp_path, capsys):
    run("simulate NH3 --dt 3 --duration 20 --output a --quiet")
    before = (tmp_path / "a" / "run.json").read_bytes()
    with Lock(tmp_path / "a" / "run.json"):
        assert "being written by process" in refused("simulate --resume a --duration 50", capsys)
    assert (tmp_path / "a" / "run.json").read_bytes() == before
    assert "run.json" in {p.name for p in (tmp_path / "a").iterdir() if not p.suffix == ".lock"}
    assert "already" in refused("simulate --resume a --duration 10", capsys)
    assert (tmp_path / "a" / "run.json").read_bytes() == before


def test_folders_of_runs_that_did_not_begin_are_free(tmp_path, capsys):
    (tmp_path / "a").mkdir()
    for name in (".run.json.lock", "run.json.part"):
        (tmp_path / "a" / name).touch()
    run("simulate NH3 --dt 3 --duration 6 --equilibration 0 --output a --quiet")
    assert {"run.json", "trajectory.traj"} <= {p.name for p in (tmp_path / "a").iterdir()}
    assert "exists" in refused("simulate NH3 --dt 3 --duration 6 --output a", capsys)


def test_default_folders_are_made_by_one_process_each(tmp_path, monkeypatch):
    """Another process makes the folder between the look for a free name and mkdir."""
    mkdir = Path.mkdir

    def late(path, *args, **kwargs):
        if path.name == "NH3-300K-unequilibrated":
            with suppress(FileExistsError):
                mkdir(path)
        mkdir(path, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", late)
    run("simulate NH3 --dt 3 --duration 6 --equilibration 0 --quiet")
    assert list((tmp_path / "NH3-300K-unequilibrated").iterdir()) == []
    made = tmp_path / "NH3-300K-unequilibrated-2"
    assert len(Trajectory.read(made / "trajectory.traj")) == 3


@pytest.mark.parametrize(
    "spoil",
    [
        lambda r: r.pop("trajectory"),
        lambda r: r.update(trajectory="../a.traj"),
        lambda r: r.update(trajectory="/tmp/a.traj"),
        lambda r: r["settings"].pop("seed"),
        lambda r: r.update(settings=[]),
        lambda r: r["structure"].update(numbers=["x"]),
        lambda r: [r[state].pop("positions_A") for state in ("structure", "before_equilibration")],
        lambda r: r["structure"].update(described=7),
    ],
)
def test_damaged_runs_are_refused(tmp_path, capsys, spoil):
    run("simulate NH3 --dt 3 --duration 20 --output a --quiet")
    file = tmp_path / "a" / "run.json"
    content = json.loads(file.read_text())
    spoil(content)
    file.write_text(json.dumps(content))
    assert "a/run.json does not describe a run" in refused("simulate --resume a", capsys)
    assert json.loads(file.read_text()) == content


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("thermostat", True, "thermostat is True, expected one of langevin, csvr"),
        ("energy_rate", float("nan"), "energy_rate must be a number"),
        ("dtype", -1, "dtype must be"),
        ("model", 7, "a: "),
        ("duration", -1, "expected 0 < dt <= duration"),
    ],
)
def test_runs_with_odd_settings_are_refused_by_their_name(tmp_path, capsys, name, value, said):
    run("simulate NH3 --dt 3 --duration 6 --equilibration 0 --output a --quiet")
    file = tmp_path / "a" / "run.json"
    content = json.loads(file.read_text())
    content["settings"][name] = value
    file.write_text(json.dumps(content))
    told = refused("simulate --resume a", capsys)
    assert said in told and told.startswith("mdtrajnet simulate: a")


def test_runs_begin_again_with_all_that_describes_the_atoms(tmp_path):
    atoms = molecule("NH3")
    atoms.set_tags([7, 0, 0, 0])
    atoms.info["batch"] = "b1"
    ase.io.write(tmp_path / "start.extxyz", atoms)
    run("simulate start.extxyz --dt 3 --duration 6 --equilibration 0 --output a --quiet")
    (tmp_path / "a" / "trajectory.traj").unlink()
    run("simulate --resume a --quiet")
    last = Trajectory.read(tmp_path / "a" / "trajectory.traj")[-1]
    assert list(last.get_tags()) == [7, 0, 0, 0] and last.info["batch"] == "b1"


def test_a_full_disk_is_said_and_waited_out(tmp_path, capsys):
    arguments = "simulate NH3 --dt 0.1 --duration 60 --equilibration 0 --format h5 --quiet --output"
    run(f"{arguments} whole")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, before[1]))
    try:
        said = refused(f"{arguments} a", capsys)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "a/trajectory.h5" in said and "frames before this are complete" in said
    run("simulate --resume a --quiet")
    a, whole = (Trajectory.read(tmp_path / name / "trajectory.h5") for name in ("a", "whole"))
    np.testing.assert_array_equal(a.momenta, whole.momenta)


def test_no_folded_spectrum(tmp_path, capsys):
    run("simulate NH3 --dt 10 --duration 500 --output a --quiet")
    assert "No spectrum: frames every 10 fs" in capsys.readouterr().out
    assert not (tmp_path / "a" / "spectrum.csv").exists()
    run("simulate NH3 --duration 50 --output b --quiet")
    assert "run at least" in capsys.readouterr().out


def test_structures_with_velocities_keep_them(tmp_path):
    atoms = cases.hot("CH3OH")
    atoms.write("methanol.extxyz")
    run("simulate methanol.extxyz --duration 10 --quiet")
    start = Trajectory.read(tmp_path / "methanol" / "trajectory.traj")
    stored = ase.io.read("methanol.extxyz")
    np.testing.assert_array_equal(start.positions[0], stored.positions)
    np.testing.assert_allclose(start.momenta[0], stored.get_momenta(), rtol=1e-12)


def test_nothing_is_overwritten_or_guessed(tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep")
    assert "never overwritten" in refused("simulate water --output full", capsys)
    assert (tmp_path / "full" / "mine.txt").read_text() == "keep"
    assert "no structure" in refused("simulate notamolecule", capsys)
    assert "does not know the elements Si" in refused("simulate SiH4", capsys)
    assert "no model 'nonsense'" in refused("simulate water --model nonsense", capsys)
    assert "give a structure" in refused("simulate", capsys)
    assert "run.json" in refused("simulate --resume full", capsys)
    assert "dt" in refused("simulate water --dt 0 --output zero", capsys)
    assert "no trajectory file" in refused("spectrum nothing.traj", capsys)
    assert [p.name for p in tmp_path.iterdir()] == ["full"]


def test_spectrum(tmp_path, capsys):
    run("simulate water --dt 1 --duration 500 --output w --quiet")
    run("spectrum w/trajectory.traj --skip 100 --resolution 150 --output lines")
    assert (tmp_path / "lines.csv").exists() and (tmp_path / "lines.png").exists()
    assert "never overwritten" in refused("spectrum w/trajectory.traj --output lines.csv", capsys)
    assert "resolve" in refused("spectrum w/trajectory.traj --resolution 5", capsys)


def test_infrared_spectrum(tmp_path, capsys):
    """Of the folder of a run, with the dipoles of its model or of another."""
    made = cases.gentle(
        dtype=torch.float32, **cases.OWN, **cases.WINDOW_POTENTIALS, dipole={"channels": 4}
    )
    save_model(made, "with")
    run("simulate water --model with --dt 2 --duration 600 --equilibration 0 --output w --quiet")
    capsys.readouterr()
    run("spectrum w --ir")
    out = capsys.readouterr().out
    assert "Vibrational density of states, " in out
    assert "Infrared absorption (harmonic quantum correction), " in out
    w, motion, infrared = np.loadtxt("w/trajectory-infrared.csv", delimiter=",", skiprows=1).T
    assert (tmp_path / "w" / "trajectory-infrared.png").exists()
    trajectory = Trajectory.read("w/trajectory.traj")
    how = {"resolution": 81, "max_wavenumber": 4500}
    bins, expected = infrared_spectrum(load_model("with").dipoles(trajectory), 2.0, **how)
    np.testing.assert_allclose(w, bins, rtol=1e-6)
    np.testing.assert_allclose(infrared, expected, rtol=1e-5, atol=1e-12)
    assert np.corrcoef(motion, infrared)[0, 1] < 0.99
    trajectory.write("alone.h5")
    assert "no run.json beside alone.h5" in refused("spectrum alone.h5 --ir", capsys)
    run("spectrum alone.h5 --ir --model with")
    np.testing.assert_allclose(np.loadtxt("alone-infrared.csv", delimiter=",", skiprows=1).T[0], w)
    save_model(cases.model(dtype=torch.float32), "without")
    assert "has no dipole" in refused("spectrum w --ir --model without --output x", capsys)
    assert "--model is of the dipoles" in refused("spectrum w --model with", capsys)
    assert "holds no run.json" in refused("spectrum with", capsys)


def test_spectra_of_any_trajectory(tmp_path, capsys):
    """Of 2,000 cm^-1, from ASE's files too; neither a drift nor uneven frames are passed over."""
    t, atoms = np.arange(1500.0), molecule("CO")
    m, w = atoms.get_masses()[:, None], 2 * np.pi * 2000 / WAVENUMBER
    mode = np.array([[0, 0, 0.1], [0, 0, -0.1]]) / m

    def vibrating(t, drift=0.0):
        x = atoms.positions + np.sin(w * t)[:, None, None] * mode + (drift * t)[:, None, None]
        v = w * np.cos(w * t)[:, None, None] * mode + drift
        return Trajectory(atoms, t, x, momenta_from_velocities(v, atoms.get_masses()))

    vibrating(t, drift=0.005).write("drifts.h5")
    run("spectrum drifts.h5")
    (peak,) = re.findall(r"beside the highest: (\d+) \(1.00\)", capsys.readouterr().out)
    assert abs(int(peak) - 2000) < 5
    frames = list(vibrating(t))
    for frame in frames:
        del frame.info["time_fs"]
    ase.io.write("foreign.traj", frames)
    assert "frame_fs" in refused("spectrum foreign.traj", capsys)
    run("spectrum foreign.traj --frame 1")
    vibrating(np.r_[t[:1000], 1000:2000:2]).write("uneven.h5")
    assert "1 fs from frame 0 to 1, 2 fs from frame 1000" in refused("spectrum uneven.h5", capsys)


def test_velocities_under_other_names_are_not_passed_over(tmp_path, capsys):
    atoms = molecule("H2O")
    atoms.set_array("vel", np.ones((3, 3)))
    ase.io.write("start.extxyz", atoms)
    assert "array 'vel'" in refused("simulate start.extxyz --duration 10", capsys)
    run("simulate start.extxyz --duration 10 --equilibration 0 --temperature 300 --quiet")


def test_terminals_without_angstroms(monkeypatch):
    said = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(said, encoding="gbk"))
    run("simulate water --duration 10 --equilibration 0 --quiet")
    sys.stdout.flush()
    assert b"? off a straight line" in said.getvalue()


@pytest.mark.slow
def test_generate_evaluate_train(tmp_path, capsys):
    run(
        "generate O --trajectories 2 --duration 40 --equilibration 10 --conformers 1 "
        "--temperatures 200 500 --output water.h5"
    )
    assert len(load_records("water.h5")) == 2
    run("evaluate water.h5 --pairs 50 --output errors --times 1 10")
    out = capsys.readouterr().out
    assert "ballistic" in out and "after 10 fs" in out and "of thermal" in out
    assert "Potential energy: changes within 10 fs are wrong by 0.0" in out
    assert "Symplectic windows of 3 fs: positions are wrong by 0.00" in out
    tables = {
        path.stem: list(csv.DictReader(path.open())) for path in (tmp_path / "errors").glob("*.csv")
    }
    assert {name: len(rows) for name, rows in tables.items()} == {
        "errors": 2,
        "elements": 2,
        "temperatures": 2,
        "molecules": 1,
    }
    for name in ("elements", "temperatures", "molecules"):  # of the pairs of the last time
        atoms, errors = (
            np.array([float(row[column]) for row in tables[name]])
            for column in ("atoms", "position")
        )
        whole = np.sqrt(atoms @ errors**2 / atoms.sum())
        np.testing.assert_allclose(whole, float(tables["errors"][1]["position"]))
    pictures = {path.name for path in (tmp_path / "errors").glob("*.png")}
    logs = (BUNDLED / "molecules-nve").glob("log*.csv")
    learning = {f"learning{log.stem.removeprefix('log')}.png" for log in logs}
    assert learning and pictures == {"errors.png", "groups.png"} | learning
    (tmp_path / "train.toml").write_text(
        'data = "water.h5"\noutput = "run"\ninitial = "molecules-nve"\nsteps = 2\nbatch_size = 4\n'
        'threads = 1\n[validation.self]\ndata = "water.h5"\n'
    )
    run("train train.toml --quiet")
    assert load_model(tmp_path / "run" / "model").config == load_model("molecules-nve").config
    run("simulate water --model run/model --duration 20 --quiet")
    run("evaluate water.h5 --model run --pairs 5 --output own --times 5")
    assert (tmp_path / "own" / "learning.png").exists()


def test_data_with_a_thermostat(tmp_path, capsys):
    """Are made, and read for what does not take their energy to be constant."""
    run(
        "generate O --trajectories 1 --duration 40 --equilibration 10 --conformers 1 "
        "--temperatures 300 --thermostat nose-hoover --time-constant 50 --output nvt.h5"
    )
    (record,) = load_records("nvt.h5")
    assert record.thermostat == "nose-hoover"
    capsys.readouterr()
    run("evaluate nvt.h5 --pairs 20 --times 5")
    out = capsys.readouterr().out
    assert "Potential energy: not looked at" in out and "(nose-hoover)" in out
    assert "Symplectic windows of 3 fs: positions are wrong by 0.00" in out
    text = 'data = "nvt.h5"\noutput = "run"\ninitial = "molecules-nve"\ntarget = "{}"\nsteps = 1\n'
    for target in ("potential", "motion"):
        (tmp_path / f"{target}.toml").write_text(
            text.format(target) + "batch_size = 2\nthreads = 1\n"
        )
    assert "needs trajectories at constant energy" in refused(
        "train potential.toml --quiet", capsys
    )
    run("train motion.toml --quiet")
    assert "needs trajectories at constant" in refused("evaluate nvt.h5 --rollout", capsys)
    assert "is not of thermostat" in refused("generate O --friction 1 --output a.h5", capsys)


@pytest.mark.slow
def test_evaluate_rollouts(tmp_path, capsys, water_runs):
    run(f"evaluate {water_runs} --rollout --spacing 4 --output runs")
    out = capsys.readouterr().out
    assert "molecules-nve, symplectic windows of 3 fs: 2 runs of 1 molecules, 1.7 ps" in out
    assert "Energy drift of 2 predicted runs, by the teacher's energies" in out
    (row,) = csv.DictReader((tmp_path / "runs" / "molecules.csv").open())
    assert float(row["r"]) > 0.5 and 0.8 < float(row["temperature"]) < 1.2
    assert abs(float(row["drift"])) < 30 and row["first_broken_ps"] == ""
    assert "never overwritten" in refused(f"evaluate {water_runs} --rollout --output runs", capsys)
    assert "--times is of evaluate without" in refused(
        f"evaluate {water_runs} --rollout --times 5", capsys
    )
    assert "--energy-rate is of evaluate with" in refused(
        f"evaluate {water_runs} --energy-rate 0.1", capsys
    )


def test_errors_of_what_stands_still(capsys):
    """Errors that are fractions of nothing are not numbers."""
    atoms = read_structure("water")
    atoms.set_momenta(np.zeros((3, 3)))
    frames = [atoms.copy() for _ in range(13)]
    for k, frame in enumerate(frames):
        frame.info["time"] = 0.001 * k  # in ps: --frame says better
        frame.set_momenta(np.zeros((3, 3)))
    ase.io.write("still.extxyz", frames, columns=["symbols", "positions", "momenta"])
    run("evaluate still.extxyz --frame 1 --pairs 5 --times 1 --model molecules-nve-small")
    assert "velocities by nan% and accelerations by nan%" in capsys.readouterr().out


def test_constrained_data_are_refused(capsys):
    atoms = cases.hot("H2O")
    atoms.set_constraint(FixBondLength(0, 1))
    frames = [atoms.copy() for _ in range(3)]
    for k, frame in enumerate(frames):
        frame.info["time_fs"] = float(k)
    ase.io.write("held.traj", frames)
    assert "held has constraints (FixBondLength" in refused("evaluate held.traj --rollout", capsys)


def test_convert(tmp_path, capsys):
    run(f"convert {cases.DATA / 'tiny.pt'} --output converted")
    atoms = cases.hot("H2O")
    for a, b in zip(
        load_model("converted").predict(atoms, [5.0]),
        load_model(cases.DATA / "tiny.pt").predict(atoms, [5.0]),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)
    assert "already holds a model" in refused(
        f"convert {cases.DATA / 'tiny.pt'} --output converted", capsys
    )


def test_info(tmp_path, capsys):
    run("info")
    out = capsys.readouterr().out
    for word in ("CUDA part", "OpenMP", "molecules-nve", "torch"):
        assert word in out
    for name in ("mdtrajnet.h", "libmdtrajnet.so"):
        (line,) = (line for line in out.splitlines() if line.startswith(name))
        assert Path(line.split()[1]).is_file()
    save_model(cases.model(), tmp_path / "model", provenance={"data": "none at all"})
    run("info model")
    out = capsys.readouterr().out
    assert "none at all" in out and "num_attn_blocks" in out
