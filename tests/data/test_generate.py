"""MD generation: what is written, that it is the same however it is run, and what is refused."""

from __future__ import annotations

import contextlib
import hashlib
import signal
import subprocess
import sys
import time

import ase.io
import ase.units
import h5py
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.md.nose_hoover_chain import NoseHooverChainNVT
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS

from mdtrajnet_fast.data.generate import (
    _bond_change,
    _integrate,
    _Settings,
    generate,
    make_calculator,
)
from mdtrajnet_fast.data.nose_hoover import NoseHoover, NoseHooverChain
from mdtrajnet_fast.data.records import (
    Writer,
    check_constant_energy,
    load_records,
    write_records,
)
from mdtrajnet_fast.io.lock import Lock
from mdtrajnet_fast.mechanics import thermal_velocities

WATER = hashlib.sha1(b"O").hexdigest()[:10]
SHORT = {"duration_fs": 8.0, "equilibration_fs": 4.0, "seed": 3}


def everything(path):
    """Everything in the file, as bytes, without the history of how it was written."""
    found = {}
    with h5py.File(path) as file:

        def visit(name, node):
            found[name] = {k: np.asarray(v).tolist() for k, v in node.attrs.items()}
            if isinstance(node, h5py.Dataset):
                found[name + ":data"] = (node.dtype.str, node.shape, node[()].tobytes())

        file.visititems(visit)
    return found


@pytest.fixture(scope="module")
def water(tmp_path_factory):
    """Three trajectories of water and of formaldehyde in one go with two processes."""
    path = tmp_path_factory.mktemp("generate") / "water.h5"
    summary = generate(["O", "formaldehyde"], path, trajectories=3, processes=2, **SHORT)
    assert (summary.written, summary.present, summary.failed) == (6, 0, {})
    return path


def test_file_has_the_documented_form(water):
    with h5py.File(water) as file:
        assert set(file) == {WATER, "formaldehyde"}
        group = file[WATER]
        assert set(group) == {"numbers", "traj00", "traj01", "traj02"}
        expected = {"smiles": "O", "split": "train", "method": "GFN2-xTB (tblite)", "dt_fs": 0.25}
        expected |= {"frame_fs": 1.0, "pos_scale": 2e-4, "vel_scale": 1e-5, "seed": 3}
        assert expected.items() <= dict(group.attrs).items()
        assert group["numbers"].dtype == np.uint8 and group["numbers"][()].tolist() == [8, 1, 1]
        for k, temperature in enumerate((300.0, 300.0, 150.0)):
            node = group[f"traj{k:02d}"]
            assert set(node.attrs) == {"temperature_K", "conformer", "energy_std_eV"}
            assert node.attrs["temperature_K"] == temperature and node.attrs["conformer"] == 0
            assert node.attrs["energy_std_eV"] == node["energy"][()].std()
            shapes = {name: (data.shape, data.dtype.str) for name, data in node.items()}
            assert shapes == {
                "positions": ((9, 3, 3), "<i2"),
                "velocities": ((9, 3, 3), "<i2"),
                "energy": ((9,), "<f8"),
                "dipole": ((9, 3), "<f4"),
            }
        assert "smiles" not in file["formaldehyde"].attrs


def test_frames_are_physical(water):
    for record in load_records(water):
        mass = record.masses[:, None]
        arms, velocities = record.positions.astype(float), record.velocities.astype(float)
        # to the rounding of the file: 1e-4 Å, 5e-6 Å/fs
        assert np.abs((mass * arms).sum(1) / mass.sum()).max() < 1e-4
        assert np.abs((mass * velocities).sum(1) / mass.sum()).max() < 5e-6
        assert np.abs((mass * np.cross(arms, velocities)).sum(1)).max() < 1e-3
        assert record.energy.std() < 2e-3
        # positions are the integral of velocities (trapezia of 1 fs, to the third derivative)
        moved = np.cumsum(0.5 * (velocities[1:] + velocities[:-1]), axis=0)
        assert np.abs(arms[0] + moved - arms[1:]).max() < 0.02
        assert np.abs(arms[-1] - arms[0]).max() > 0.05

    # All the energy above the minimum was put in as heat: 3N/2 kB times twice the target.
    record = load_records(water, molecules="O", trajectories="traj02")[0]
    atoms = molecule("H2O")
    atoms.calc = make_calculator("gfn2-xtb")
    BFGS(atoms, logfile=None).run(fmax=1e-3)
    heat = record.energy.mean() - atoms.get_potential_energy()
    assert heat == pytest.approx(3 * 3 * ase.units.kB * 150.0, abs=2e-3)


def test_energies_are_those_of_the_frames(water):
    record = load_records(water, molecules="formaldehyde", trajectories="traj01")[0]
    with h5py.File(water) as file:
        dipole = file["formaldehyde/traj01/dipole"][()]
    for frame in (0, 5):
        atoms = Atoms(record.numbers, record.positions[frame])
        atoms.set_velocities(record.velocities[frame] / ase.units.fs)
        atoms.calc = make_calculator("gfn2-xtb")
        assert atoms.get_total_energy() == pytest.approx(record.energy[frame], abs=3e-3)
        np.testing.assert_allclose(dipole[frame], atoms.get_dipole_moment(), atol=1e-3)


def test_continuing_gives_the_data_of_one_go(water, tmp_path):
    path = tmp_path / "steps.h5"
    assert generate(["formaldehyde"], path, trajectories=1, **SHORT).written == 1
    summary = generate(["[H]O[H]", "formaldehyde"], path, trajectories=3, **SHORT)
    assert (summary.written, summary.present) == (5, 1)
    assert everything(path) == everything(water)
    before = path.read_bytes()
    summary = generate(["O", "formaldehyde"], path, trajectories=2, **SHORT)
    assert (summary.written, summary.present) == (0, 4)
    assert path.read_bytes() == before


SCRIPT = """
import sys
from mdtrajnet_fast.data.generate import generate
if __name__ == "__main__":
    generate(["O"], sys.argv[1], trajectories=1000, duration_fs=8, equilibration_fs=4, seed=3)
"""


def test_interruption_leaves_complete_trajectories(water, tmp_path):
    script, path = tmp_path / "script.py", tmp_path / "out.h5"
    script.write_text(SCRIPT)
    done: set[str] = set()
    for how in (signal.SIGINT, signal.SIGKILL):
        enough = len(done) + 3
        process = subprocess.Popen([sys.executable, script, path], stderr=subprocess.DEVNULL)
        try:
            hanging = time.monotonic() + 300
            while len(done) < enough and process.poll() is None:
                assert time.monotonic() < hanging
                time.sleep(0.02)
                if path.exists():
                    with contextlib.suppress(OSError, ValueError):  # it is just being made
                        done = Writer(path).contents().get(WATER, set())
            process.send_signal(how)
            assert process.wait(timeout=300) != 0
        finally:
            process.kill()
            process.wait()
        done = Writer(path).contents()[WATER]
        assert enough <= len(done) < 1000
        assert all(len(record.positions) == 9 for record in load_records(path))
    assert generate(["O"], path, trajectories=3, **SHORT).present == 3
    whole, continued = everything(water), everything(path)
    for k in range(3):
        for name in (f"{WATER}/traj{k:02d}", f"{WATER}/traj{k:02d}/positions:data"):
            assert whole[name] == continued[name]


def test_periodic_system_with_an_ase_calculator(tmp_path):
    crystal = bulk("Cu", cubic=True) * (2, 1, 1)
    crystal.positions += 20.0  # wherever it is, and more than int16 holds
    ase.io.write(tmp_path / "copper.extxyz", crystal)
    options = {"step_fs": 2.0, "frame_fs": 4.0, "duration_fs": 40.0, "equilibration_fs": 8.0}
    summary = generate(
        [str(tmp_path / "copper.extxyz")],
        tmp_path / "out.h5",
        calculator="emt",
        trajectories=2,
        temperatures_K=[500],
        **options,
    )
    assert summary.written == 2 and not summary.failed
    records = load_records(tmp_path / "out.h5")
    assert not np.array_equal(records[0].positions, records[1].positions)
    for record in records:
        assert (record.molecule, record.frame_fs, len(record.positions)) == ("copper", 4.0, 11)
        np.testing.assert_allclose(record.cell, crystal.cell, atol=1e-7)
        assert record.pbc.all()
        assert np.abs(record.velocities.sum(1)).max() < 1e-6
        assert record.energy.std() < 0.02

        # against ASE's own integrator, from the first frame on
        atoms = Atoms(record.numbers, record.positions[0], cell=record.cell, pbc=True)
        atoms.set_velocities(record.velocities[0] / ase.units.fs)
        atoms.calc = EMT()
        VelocityVerlet(atoms, 2.0 * ase.units.fs).run(20)
        np.testing.assert_allclose(record.positions[-1], atoms.positions, atol=1e-4)
        np.testing.assert_allclose(
            record.velocities[-1], atoms.get_velocities() * ase.units.fs, atol=1e-5
        )
        assert record.energy[-1] == pytest.approx(atoms.get_total_energy(), abs=1e-3)
    with h5py.File(tmp_path / "out.h5") as file:
        assert file["copper"].attrs["method"] == "emt"
        assert "pos_scale" not in file["copper"].attrs
        assert set(file["copper/traj00"]) == {"positions", "velocities", "energy"}


LONG = {"duration_fs": 2_500.0, "equilibration_fs": 500.0, "step_fs": 0.5, "frame_fs": 5.0}
SPRINGS = """
import numpy as np
from ase.calculators.calculator import Calculator, all_changes


class Springs(Calculator):
    implemented_properties = ["energy", "forces"]

    def calculate(self, atoms=None, properties=None, system_changes=all_changes):
        apart = atoms.positions[:, None] - atoms.positions
        lengths = np.sqrt((apart**2).sum(-1)) + np.eye(len(atoms))
        rest = np.where(np.add.outer(atoms.numbers, atoms.numbers) == 9, 0.96, 1.5)
        stretch = np.where(np.eye(len(atoms)) > 0, 0.0, lengths - rest)
        forces = -20.0 * ((stretch + 20 * stretch**3) / lengths)[:, :, None] * apart
        energy = 20.0 * (stretch**2 / 2 + 5 * stretch**4).sum() / 2
        self.results = {"energy": energy, "forces": forces.sum(1)}
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "thermostat",
    [
        {"thermostat": "nose-hoover", "time_constant_fs": 30.0},
        {"thermostat": "langevin", "friction_per_fs": 0.1},
        {"thermostat": "csvr", "time_constant_fs": 10.0},
    ],
    ids=lambda given: given["thermostat"],
)
def test_thermostats(tmp_path, monkeypatch, thermostat):
    """Of a water molecule on anharmonic springs: frames at the temperature, with its scatter.

    With three degrees of freedom a thermostat that counts nine would be three times too hot.
    """
    monkeypatch.chdir(tmp_path)
    (tmp_path / "springs.py").write_text(SPRINGS)
    ase.io.write("water.xyz", molecule("H2O"))
    options = {"calculator": "springs:Springs", "trajectories": 2, "temperatures_K": [400.0]}
    options |= LONG | thermostat | {"max_energy_std_eV": 0.01, "seed": 1}
    summary = generate(["water.xyz"], "out.h5", **options)
    assert summary.written == 2 and not summary.redrawn
    records = load_records("out.h5")
    kinetic = np.concatenate([_kinetic(r) for r in records]) / (ase.units.kB * 400.0)
    assert kinetic.mean() == pytest.approx(1.5, rel=0.15)
    assert kinetic.var() == pytest.approx(1.5, rel=0.4)
    for record in records:
        assert record.thermostat == thermostat["thermostat"]
        mass = record.masses[:, None]
        arms, velocities = record.positions.astype(float), record.velocities.astype(float)
        assert np.abs((mass * velocities).sum(1) / mass.sum()).max() < 2e-5
        arms -= (mass * arms).sum(1)[:, None] / mass.sum()
        assert np.abs((mass * np.cross(arms, velocities)).sum(1)).max() < 1e-3
        assert record.energy.std() > 0.03  # of the molecule, to which heat comes and goes
    constant = "friction_per_fs" if "friction_per_fs" in thermostat else "time_constant_fs"
    with h5py.File("out.h5") as file:
        attributes = dict(file["water"].attrs)
        spread = file["water/traj00"].attrs["energy_std_eV"]
    assert attributes["thermostat"] == thermostat["thermostat"]
    assert attributes[constant] == thermostat.get(constant, 100.0)
    assert spread < 0.01
    before = everything("out.h5")
    again = {**options, "trajectories": 3}
    for change, message in (
        ({"thermostat": None, constant: None}, "thermostat = "),
        ({constant: 0.5}, f"{constant} = "),
    ):
        with pytest.raises(ValueError, match=message):
            generate(["water.xyz"], "out.h5", **{**again, **change})
    assert everything("out.h5") == before


def _kinetic(record):
    squares = record.masses[:, None] * record.velocities.astype(float) ** 2
    return 0.5 * squares.sum((1, 2)) / ase.units.fs**2


def test_a_thermostat_is_not_added_to_a_file(water):
    before = water.read_bytes()
    with pytest.raises(ValueError, match="thermostat = None, but now thermostat = csvr"):
        generate(["O"], water, trajectories=5, thermostat="csvr", **SHORT)
    assert water.read_bytes() == before


def test_nose_hoover_is_that_of_ase(monkeypatch):
    """Step by step, with ASE's integrator given the same chain; it conserves what it should."""
    atoms = molecule("H2O")
    thermal_velocities(atoms, 1500.0, 1)
    atoms.calc = make_calculator("gfn2-xtb")
    monkeypatch.setattr("mdtrajnet_fast.data.generate._bond_change", lambda *_: None)
    settings = _Settings("gfn2-xtb", "{}", 1, 0.25, 0, 4, 21, 0, 0.02, 1)
    chain = NoseHooverChain(NoseHoover(300.0, 20.0), atoms)
    mine = atoms.copy()
    frames, spread = _integrate(mine, settings, chain)
    theirs = NoseHooverChainNVT(atoms, 0.25 * ase.units.fs, 300.0, 20.0 * ase.units.fs)
    theirs._thermostat = NoseHooverChain(NoseHoover(300.0, 20.0), atoms)._chain
    theirs.run(80)
    np.testing.assert_allclose(frames["positions"][-1], atoms.positions, atol=1e-8)
    conserved = frames["energy"][-1] - chain.heat[0]
    thermostat = theirs._thermostat.get_thermostat_energy()
    assert conserved == pytest.approx(atoms.get_total_energy() + thermostat, abs=1e-6)
    assert spread < 0.05 * np.std(frames["energy"])


def test_energies_of_thermostatted_data_are_not_learned_from(tmp_path):
    path = tmp_path / "nvt.h5"
    generate(["O"], path, trajectories=1, thermostat="csvr", **SHORT)
    records = load_records(path)
    with pytest.raises(
        ValueError, match=r"traj00 was made with a thermostat \(csvr\), and energies"
    ):
        check_constant_energy(records, "energies")
    write_records(tmp_path / "again.h5", records)
    (again,) = load_records(tmp_path / "again.h5")
    assert again.thermostat == "csvr"


def test_what_fails_is_reported(tmp_path):
    ase.io.write(tmp_path / "copper.xyz", Atoms("Cu2", [[0, 0, 0], [0, 0, 2.3]]))
    ase.io.write(tmp_path / "argon.xyz", Atoms("Ar2", [[0, 0, 0], [0, 0, 3.8]]))
    path = tmp_path / "out.h5"
    summary = generate(
        [str(tmp_path / "copper.xyz"), str(tmp_path / "argon.xyz")],
        path,
        calculator="ase.calculators.emt:EMT",
        calculator_kwargs={"asap_cutoff": True},
        trajectories=1,
        max_energy_std_eV=1e-30,
        draws=3,
        **SHORT,
    )
    assert (summary.written, summary.redrawn) == (0, 3)
    assert set(summary.failed) == {"copper/traj00", "argon/traj00"}
    assert "3 draws, the last: standard deviation of the energy" in summary.failed["copper/traj00"]
    assert "relaxation failed (" in summary.failed["argon/traj00"]
    assert "2 failed\n" in str(summary) and "\n  copper/traj00: 3 draws" in str(summary)
    assert Writer(path).contents() == {}


def test_calculators_by_name():
    lj = make_calculator("ase.calculators.lj:LennardJones", '{"sigma": 3.4}')
    assert lj.parameters["sigma"] == 3.4
    assert type(make_calculator("emt")) is EMT
    assert make_calculator("gfn1-xtb").parameters["method"] == "GFN1-xTB"
    assert make_calculator("gfn2-xtb").parameters["accuracy"] == 0.1
    assert make_calculator("gfn2-xtb", '{"accuracy": 1.0}').parameters["accuracy"] == 1.0


def test_nothing_else_comes_from_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "tblite").mkdir()
    (tmp_path / "tblite" / "__init__.py").write_text("raise RuntimeError('of the folder')")
    for name in ("json5x", "zipfile"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('of the folder')")
    monkeypatch.chdir(tmp_path)
    for name in [n for n in sys.modules if n.partition(".")[0] == "tblite"]:
        monkeypatch.delitem(sys.modules, name)
    before = list(sys.path)
    make_calculator("gfn2-xtb")
    with pytest.raises(ValueError, match="of the folder"):
        make_calculator("json5x:Calculator")
    with pytest.raises(ValueError, match="has no attribute"):
        make_calculator("zipfile:Calculator")
    assert sys.path == before


def test_one_process_writes_a_file(tmp_path):
    with Lock(tmp_path / "a.h5"), pytest.raises(BlockingIOError, match="being written by process"):
        generate(["O"], tmp_path / "a.h5", calculator="emt", trajectories=1)


def test_calculator_in_the_current_folder(tmp_path, monkeypatch):
    """Also where Python does not look there by itself, as in an installed command."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(tmp_path))])
    (tmp_path / "my_calculator.py").write_text(
        "from ase.calculators.emt import EMT\nclass Mine(EMT):\n    pass\n"
    )
    before = list(sys.path)
    ase.io.write("copper.extxyz", bulk("Cu", cubic=True))
    options = {"calculator": "my_calculator:Mine", "trajectories": 1, "temperatures_K": [300]}
    summary = generate(["copper.extxyz"], "out.h5", **options, **SHORT)
    assert summary.written == 1 and not summary.failed
    assert sys.path == before


@pytest.mark.parametrize(
    "change, message",
    [
        ({"seed": 4}, f"group {WATER} was written with seed = 3, but now seed = 4"),
        ({"duration_fs": 9.0}, "duration_fs = 8.0, but now duration_fs = 9.0"),
        ({"temperatures_K": [300]}, "temperatures_K"),
        ({"calculator": "gfn1-xtb"}, "method = GFN2-xTB .*, but now method = GFN1-xTB"),
        ({"calculator_kwargs": {"accuracy": 1}}, "calculator_kwargs"),
        ({"conformers": 1}, "conformers = 3, but now conformers = 1"),
    ],
)
def test_other_settings_are_not_mixed_in(water, change, message):
    before = water.read_bytes()
    with pytest.raises(ValueError, match=message):
        generate(["O"], water, trajectories=5, **{**SHORT, **change})
    assert water.read_bytes() == before


def test_another_structure_of_the_same_name_is_not_mixed_in(water, tmp_path):
    atoms = molecule("H2CO")
    atoms.rattle(0.01)
    ase.io.write(tmp_path / "formaldehyde.xyz", atoms)
    with pytest.raises(ValueError, match="group formaldehyde was written with structure"):
        generate([str(tmp_path / "formaldehyde.xyz")], water, trajectories=5, **SHORT)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"frame_fs": 0.6}, "frame_fs is 0.6, expected a whole multiple of step_fs = 0.25"),
        ({"duration_fs": 1.5}, "duration_fs is 1.5, expected a whole multiple of frame_fs"),
        ({"equilibration_fs": -1.0}, "must not be negative"),
        ({"processes": 0}, "processes is 0"),
        ({"step_fs": float("nan")}, "step_fs is nan"),
        ({"thermostat": "nose"}, "must be one of nose-hoover, langevin, csvr, or none"),
        ({"friction_per_fs": 0.1}, "friction_per_fs = 0.1 is not of thermostat None"),
        ({"thermostat": "langevin", "time_constant_fs": 9.0}, "is not of thermostat langevin"),
        ({"thermostat": "csvr", "time_constant_fs": 0.0}, "must be a positive number"),
        ({"thermostat": "nose-hoover", "time_constant_fs": -1.0}, "must be a positive number"),
        ({"temperatures_K": []}, "temperatures_K"),
        ({"temperatures_K": [300, 0]}, "temperatures_K"),
        ({"calculator": "gfn3"}, "calculator 'gfn3' cannot be made .*expected gfn2-xtb"),
        ({"calculator": "no_module:Class"}, "'no_module:Class' cannot be made .*No module named"),
        ({"calculator": "json:JSONDecoder"}, "JSONDecoder, expected an ASE Calculator"),
        ({"calculator_kwargs": [1, 2]}, r"calculator_kwargs is \[1, 2\], expected a mapping"),
        ({"calculator_kwargs": "accuracy"}, "calculator_kwargs is 'accuracy', expected a mapping"),
        ({"calculator_kwargs": {"accuracy": 1j}}, "calculator_kwargs must be JSON values"),
        ({"systems": []}, "no systems"),
        ({"systems": ["O", "[H]O[H]"]}, "like a system before it"),
        ({"systems": ["etanol"]}, "did you mean ethanol"),
        ({"out": "out.xyz"}, "ends in .h5"),
        ({"systems": ["_hidden.xyz"]}, "'_hidden' cannot name a group"),
    ],
)
def test_bad_arguments(tmp_path, monkeypatch, change, message):
    monkeypatch.chdir(tmp_path)
    ase.io.write("_hidden.xyz", molecule("H2O"))
    with pytest.raises(ValueError, match=message):
        generate(**{"systems": ["O"], "out": "out.h5", **change})
    assert [path.name for path in tmp_path.iterdir()] == ["_hidden.xyz"]


def test_changes_of_bonds_are_found():
    atoms = molecule("CH3CH2OH")
    oxygen = int(atoms.symbols.search("O")[0])
    near = np.argsort(atoms.get_distances(oxygen, range(9)))
    hydrogen = next(int(i) for i in near if atoms.symbols[i] == "H")
    shaken = atoms.positions + np.random.default_rng(0).normal(scale=0.05, size=(9, 3))
    away = atoms.positions.copy()
    away[hydrogen] = away[oxygen] + 1.6 * (away[hydrogen] - away[oxygen])
    frames = [atoms.positions, shaken, away, shaken]
    assert _bond_change(atoms, range(2), frames[:2]) is None
    assert _bond_change(atoms, range(4), frames).startswith("broken bond ")
    assert "H" in _bond_change(atoms, range(4), frames) and "at 2 fs" in _bond_change(
        atoms, range(4), frames
    )
    assert _bond_change(atoms, [0, 1], [away, atoms.positions]).startswith("formed bond ")
