"""Trajectories on disk: the HDF5 format, imports through ase.io, and what is refused."""

from __future__ import annotations

import dataclasses
import re

import ase.io
import ase.units
import h5py
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.data import atomic_masses
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS

from mdtrajnet_fast.data.records import Writer, load_records, unwrap, write_records
from mdtrajnet_fast.io.structures import read_structure
from mdtrajnet_fast.io.trajectory import Trajectory
from mdtrajnet_fast.mechanics import momenta_from_velocities

NUMBERS = np.array([8, 1, 1])
FRAMES = 7
SCALES = {"pos_scale": 2e-4, "vel_scale": 1e-5}


def motion(seed=0, atoms=3, frames=FRAMES):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(frames, atoms, 3)), 0.02 * rng.normal(size=(frames, atoms, 3))


def reference_file(path):
    """A file as other programs may write it: two molecules with two trajectories each."""
    with h5py.File(path, "w") as file:
        for m, (name, smiles) in enumerate((("aa", "O"), ("bb", "[H]O[H]"))):
            group = file.create_group(name)
            kind = str if m else np.bytes_  # h5py gives both back differently
            group.attrs.update({"smiles": kind(smiles), "frame_fs": 0.5, **SCALES})
            group["numbers"] = NUMBERS.astype(np.uint8)
            for k in range(2):
                positions, velocities = motion(seed=10 * m + k)
                node = group.create_group(f"traj{k:02d}")
                node.attrs["temperature_K"] = 300.0
                node["positions"] = np.rint(positions / 2e-4).astype(np.int16)
                node["velocities"] = np.rint(velocities / 1e-5).astype(np.int16)
                node["energy"] = np.arange(FRAMES) + 0.1
    return path


def test_reads_the_format(tmp_path):
    records = load_records(reference_file(tmp_path / "a.h5"))
    assert [(r.molecule, r.trajectory) for r in records] == [
        ("aa", "traj00"),
        ("aa", "traj01"),
        ("bb", "traj00"),
        ("bb", "traj01"),
    ]
    record = records[3]
    positions, velocities = motion(seed=11)
    np.testing.assert_allclose(record.positions, positions, atol=1.001e-4)
    np.testing.assert_allclose(record.velocities, velocities, atol=5.001e-6)
    np.testing.assert_array_equal(record.energy, np.arange(FRAMES) + 0.1)
    np.testing.assert_array_equal(record.masses, atomic_masses[NUMBERS])
    assert record.numbers.dtype == np.int64 and record.numbers.tolist() == [8, 1, 1]
    assert record.positions.dtype == record.velocities.dtype == np.float32
    assert (record.frame_fs, record.temperature_K, record.smiles) == (0.5, 300.0, "[H]O[H]")
    assert records[0].smiles == "O"
    assert not record.pbc.any() and not record.cell.any()


@pytest.mark.parametrize(
    "keep, expected",
    [
        ({"molecules": ["aa"]}, ["aa/traj00", "aa/traj01"]),
        ({"molecules": "[H]O[H]"}, ["bb/traj00", "bb/traj01"]),
        ({"trajectories": ["traj01"]}, ["aa/traj01", "bb/traj01"]),
        ({"exclude_trajectories": ["traj01"], "molecules": ["bb"]}, ["bb/traj00"]),
    ],
)
def test_selects(tmp_path, keep, expected):
    records = load_records([reference_file(tmp_path / "a.h5")], **keep)
    assert [f"{r.molecule}/{r.trajectory}" for r in records] == expected


@pytest.mark.parametrize(
    "keep, message",
    [
        (
            {"molecules": ["CCO"]},
            r"\['CCO'\] are in none of .*a.h5; there are O, \[H\]O\[H\], aa, bb",
        ),
        ({"trajectories": ["traj07"]}, r"\['traj07'\] are in none of .*there are traj00, traj01"),
        ({"exclude_trajectories": ["traj00", "traj01"]}, "no trajectory to read"),
        (
            {"exclude_trajectories": ["traj01", "traj1"]},
            r"exclude_trajectories \['traj1'\] are in none of .*there are traj00, traj01",
        ),
    ],
)
def test_selecting_nothing_is_an_error(tmp_path, keep, message):
    with pytest.raises(ValueError, match=message):
        load_records(reference_file(tmp_path / "a.h5"), **keep)


def _replace(node, name, value):
    del node[name]
    node[name] = value


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda f: f["bb"].attrs.__delitem__("frame_fs"), "bb: no attribute 'frame_fs'"),
        (lambda f: f["bb"].attrs.__setitem__("frame_fs", -1.0), "bb/traj00: frame_fs is -1.0"),
        (lambda f: f["bb"].attrs.__delitem__("vel_scale"), "velocities are integers.*'vel_scale'"),
        (lambda f: f["bb"].__delitem__("numbers"), "bb: no data set 'numbers'"),
        (lambda f: _replace(f["bb"], "numbers", [8, 0, 1]), "atom 1 has atomic number 0"),
        (
            lambda f: _replace(f["bb"], "numbers", [8, 1]),
            r"bb/traj00: positions has shape \(7, 3, 3\)",
        ),
        (lambda f: f["bb/traj01"].__delitem__("positions"), "bb/traj01: no data set 'positions'"),
        (
            lambda f: _replace(f["bb/traj01"], "velocities", np.zeros((5, 3, 3))),
            r"bb/traj01: velocities has shape \(5, 3, 3\), expected \(7, 3, 3\)",
        ),
        (
            lambda f: _replace(f["bb/traj01"], "positions", np.full((7, 3, 3), np.nan)),
            r"bb/traj01: positions\[0, 0, 0\] is nan",
        ),
        (lambda f: f["bb/traj01/energy"].__setitem__(3, np.inf), r"energy\[3\] is inf"),
        (lambda f: f["bb"].attrs.__setitem__("pbc", True), "the cell is singular"),
        (lambda f: f.__setitem__("cc", [1, 2]), "cc is a data set"),
    ],
)
def test_broken_files_are_named(tmp_path, spoil, message):
    path = reference_file(tmp_path / "a.h5")
    with h5py.File(path, "a") as file:
        spoil(file)
    with pytest.raises(ValueError, match=f"{re.escape(str(path))}: .*{message}"):
        load_records(path)


def test_files_that_are_none(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        load_records(tmp_path / "missing.h5")
    (tmp_path / "text.h5").write_text("hello")
    with pytest.raises(ValueError, match="text.h5: not a readable HDF5 file"):
        load_records(tmp_path / "text.h5")
    (tmp_path / "text.extxyz").write_text("hello")
    with pytest.raises(ValueError, match="text.extxyz: ase.io cannot read it"):
        load_records(tmp_path / "text.extxyz")
    text = "1\nProperties=species:S:1:pos:R:333333333 time_fs=0\nO 0 0 0\n"
    for name in ("wide.extxyz", "wide.xyz"):
        (tmp_path / name).write_text(text)
        for read in (load_records, read_structure):
            with pytest.raises(ValueError, match=f"{name}: a property of 333333333 columns"):
                read(str(tmp_path / name))
    with pytest.raises(ValueError, match="an empty list of files"):
        load_records([])


# Writing


def test_writer_rounds_to_half_a_count(tmp_path):
    writer = Writer(tmp_path / "out.h5")
    writer.add_group("mol", NUMBERS, frame_fs=1.0, smiles="O", **SCALES)
    positions, velocities = motion()
    energy = np.random.default_rng(1).normal(size=FRAMES) - 137.0
    dipole = np.random.default_rng(2).normal(size=(FRAMES, 3))
    writer.append("mol", "traj00", positions, velocities, energy=energy, dipole=dipole, conformer=2)
    assert writer.contents() == {"mol": {"traj00"}}

    (record,) = load_records(tmp_path / "out.h5")
    assert np.abs(record.positions - positions).max() < 1.001e-4
    assert np.abs(record.velocities - velocities).max() < 5.001e-6
    np.testing.assert_array_equal(record.energy, energy)
    np.testing.assert_array_equal(record.dipole, dipole.astype(np.float32))
    write_records(tmp_path / "again.h5", [record])
    (again,) = load_records(tmp_path / "again.h5")
    np.testing.assert_array_equal(again.dipole, record.dipole)
    with h5py.File(tmp_path / "out.h5") as file:
        assert file["mol/traj00/positions"].dtype == file["mol/traj00/velocities"].dtype == np.int16
        assert file["mol/traj00"].attrs["conformer"] == 2
        np.testing.assert_array_equal(file["mol/traj00/dipole"], dipole.astype(np.float32))


def test_writer_refuses(tmp_path):
    path = tmp_path / "out.h5"
    writer = Writer(path)
    writer.add_group("mol", NUMBERS, frame_fs=1.0, seed=0, **SCALES)
    positions, velocities = motion()
    writer.append("mol", "traj00", positions, velocities)
    far = positions.copy()
    far[2, 1, 0] = 6.6
    with pytest.raises(ValueError, match=r"positions\[2, 1, 0\] = 6.6 does not fit int16"):
        writer.append("mol", "traj01", far, velocities)
    with pytest.raises(ValueError, match="mol/traj00 exists already"):
        writer.append("mol", "traj00", positions, velocities)
    with pytest.raises(
        ValueError, match=r"velocities have shape \(7, 2, 3\), expected \(7, 3, 3\)"
    ):
        writer.append("mol", "traj01", positions, velocities[:, :2])
    with pytest.raises(ValueError, match=r"velocities\[0, 0, 0\] is not finite"):
        writer.append("mol", "traj01", positions, velocities * np.nan)
    with pytest.raises(ValueError, match="no group other"):
        writer.append("other", "traj00", positions, velocities)
    with pytest.raises(ValueError, match="group mol exists already"):
        writer.add_group("mol", NUMBERS, frame_fs=1.0)
    with pytest.raises(ValueError, match="cannot name a group"):
        writer.add_group("a/b", NUMBERS, frame_fs=1.0)
    with pytest.raises(ValueError, match="mol was written with seed = 0, but now seed = 1"):
        writer.check("mol", NUMBERS, frame_fs=1.0, seed=1)
    with pytest.raises(ValueError, match="mol was written with numbers"):
        writer.check("mol", NUMBERS[::-1], frame_fs=1.0, seed=0)
    writer.check("mol", NUMBERS, frame_fs=1.0, seed=0)
    assert writer.contents() == {"mol": {"traj00"}}
    (tmp_path / "text.h5").write_text("hello")
    for name, message in (
        ("out.xyz", "ends in .h5"),
        ("no/folder.h5", "no folder"),
        ("text.h5", "not an HDF5 file"),
    ):
        with pytest.raises(ValueError, match=message):
            Writer(tmp_path / name)


def test_interrupted_writing_leaves_whole_trajectories(tmp_path, monkeypatch):
    path = tmp_path / "out.h5"
    writer = Writer(path)
    writer.add_group("mol", NUMBERS, frame_fs=1.0, **SCALES)
    writer.append("mol", "traj00", *motion(seed=0))

    real = h5py.Group.create_dataset

    def interrupted(group, name, **kwargs):
        if name == "velocities":
            raise KeyboardInterrupt
        return real(group, name, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(h5py.Group, "create_dataset", interrupted)
        with pytest.raises(KeyboardInterrupt):
            writer.append("mol", "traj01", *motion(seed=1))
    assert writer.contents() == {"mol": {"traj00"}}
    assert [r.trajectory for r in load_records(path)] == ["traj00"]

    writer.append("mol", "traj01", *motion(seed=1))
    assert [r.trajectory for r in load_records(path)] == ["traj00", "traj01"]
    np.testing.assert_allclose(load_records(path)[1].positions, motion(seed=1)[0], atol=1.001e-4)


@pytest.mark.parametrize("target", ["file", "group", "data", "virtual", "stored"])
def test_what_is_elsewhere_is_refused(tmp_path, target):
    """A file from somebody else cannot make this read other files of this machine."""
    path = reference_file(tmp_path / "a.h5")
    secret = reference_file(tmp_path / "secret.h5")
    with h5py.File(path, "r+") as file:
        molecule = next(iter(file))
        group = file[molecule]
        trajectory = group[next(k for k, v in group.items() if isinstance(v, h5py.Group))]
        shape = trajectory["positions"].shape
        if target == "file":
            file["zz"] = h5py.ExternalLink(secret, "/")
        elif target == "group":
            group["zz"] = h5py.SoftLink(trajectory.name)
        else:
            del trajectory["positions"]
        if target == "data":
            trajectory["positions"] = h5py.ExternalLink(secret, "/x")
        elif target == "virtual":
            layout = h5py.VirtualLayout(shape, "f4")
            layout[...] = h5py.VirtualSource(secret, "x", shape)
            trajectory.create_virtual_dataset("positions", layout)
        elif target == "stored":
            stored = [("secret.h5", 0, h5py.h5f.UNLIMITED)]
            trajectory.create_dataset("positions", shape, "f4", external=stored)
    with pytest.raises(ValueError, match="is a link|in other files"):
        load_records(path)


def test_write_records_keeps_everything(tmp_path):
    source = reference_file(tmp_path / "a.h5")
    records = [
        dataclasses.replace(
            record,
            masses=np.array([15.995, 2.014, 2.014]),
            cell=np.diag([9.0, 8.0, 7.0]),
            pbc=np.array([True, True, False]),
            method="GFN2-xTB (tblite)",
        )
        for record in load_records(source, molecules="aa")
    ]
    write_records(tmp_path / "b.h5", records)
    again = load_records(tmp_path / "b.h5")
    assert len(again) == 2
    for old, new in zip(records, again, strict=True):
        for field in dataclasses.fields(old):
            np.testing.assert_array_equal(getattr(old, field.name), getattr(new, field.name))

    other = dataclasses.replace(records[1], trajectory="traj05", frame_fs=2.0)
    with pytest.raises(ValueError, match="aa/traj05 has frame_fs = 2.0, but traj00 has 0.5"):
        write_records(tmp_path / "c.h5", [records[0], other])


# Imports through ase.io


def frames(cell=None, times=True, velocities=True):
    positions, speeds = motion()
    images = []
    for k in range(FRAMES):
        atoms = Atoms("OH2", positions[k])
        if cell is not None:
            atoms.set_cell(cell)
            atoms.pbc = True
        if velocities:
            atoms.set_velocities(speeds[k] / ase.units.fs)
        if times:
            atoms.info["time_fs"] = 3.0 + 0.5 * k
        atoms.calc = SinglePointCalculator(atoms, energy=-10.0 - k, dipole=[0.0, 0.1 * k, 1.0])
        images.append(atoms)
    return images


@pytest.mark.parametrize("times", [True, False])
@pytest.mark.parametrize("name", ["water.extxyz", "water.traj"])
def test_imports_what_ase_reads(tmp_path, name, times):
    images = frames(times=times)
    ase.io.write(tmp_path / name, images)
    (record,) = load_records(tmp_path / name, frame_fs=None if times else 0.5)
    positions, velocities = motion()
    assert (record.molecule, record.trajectory, record.frame_fs) == ("water", "traj00", 0.5)
    np.testing.assert_allclose(record.positions, positions, atol=2e-7)
    np.testing.assert_allclose(record.velocities, velocities, atol=1e-8)
    np.testing.assert_allclose(record.masses, atomic_masses[NUMBERS])
    kinetic = [atoms.get_kinetic_energy() for atoms in images]
    np.testing.assert_allclose(record.energy, -10.0 - np.arange(FRAMES) + kinetic, atol=1e-6)
    dipole = [[0.0, 0.1 * k, 1.0] for k in range(FRAMES)]
    np.testing.assert_allclose(record.dipole, dipole, atol=1e-6)


def test_times_of_others_and_energies_that_are_not_known(tmp_path):
    images = frames(times=False)
    for k, atoms in enumerate(images):
        atoms.info["time"] = 0.0005 * k  # ps
        atoms.calc = SinglePointCalculator(atoms, energy=np.nan)
    ase.io.write(tmp_path / "water.traj", images)
    assert load_records(tmp_path / "water.traj")[0].frame_fs == 0.0005
    (record,) = load_records(tmp_path / "water.traj", frame_fs=0.5)
    assert record.frame_fs == 0.5 and record.energy is None and record.dipole is None
    for atoms in images:
        atoms.info["time"] = "12:30:00"
    ase.io.write(tmp_path / "clock.traj", images)
    with pytest.raises(ValueError, match=r'info\["time"\] is not a time in fs.* frame_fs'):
        load_records(tmp_path / "clock.traj")
    assert load_records(tmp_path / "clock.traj", frame_fs=0.5)[0].frame_fs == 0.5


@pytest.mark.parametrize("interval", [1, 3])
def test_spacing_that_ase_noted(tmp_path, interval):
    path = tmp_path / "md.traj"
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.05, seed=1)
    atoms.calc = EMT()
    options = {"timestep": 1.5 * ase.units.fs, "trajectory": path, "loginterval": interval}
    VelocityVerlet(atoms, **options).run(4 * interval)
    (record,) = load_records(path)
    assert (record.frame_fs, len(record.positions)) == (1.5 * interval, 5)
    assert load_records(path, frame_fs=1.5 * interval)[0].frame_fs == 1.5 * interval
    with pytest.raises(ValueError, match="frame_fs is 1, but the file says"):
        load_records(path, frame_fs=1.0)
    VelocityVerlet(atoms, append_trajectory=True, **options).run(interval)
    with pytest.raises(ValueError, match="md.traj: md: frames 4 and 5 are the same"):
        load_records(path)
    BFGS(atoms, trajectory=path, logfile=None).run(steps=2)
    with pytest.raises(ValueError, match="give their spacing as frame_fs"):
        load_records(path)


@pytest.mark.parametrize("suffix", [".traj", ".extxyz", ".h5"])
def test_reads_trajectories_of_this_package(tmp_path, suffix):
    atoms = Atoms("OH2", cell=[9, 8, 7], pbc=[True, False, True])
    atoms.set_masses([15.995, 2.014, 2.014])
    positions, velocities = motion()
    momenta = momenta_from_velocities(velocities, atoms.get_masses())
    path = tmp_path / f"run{suffix}"
    times = 0.1 * np.arange(FRAMES)
    whole = Trajectory(atoms, times, positions, momenta, None, np.linspace(-3.0, 1.0, FRAMES))
    whole.write(path)
    (record,) = load_records(path)
    np.testing.assert_allclose(record.energy, whole.total_energies, rtol=1e-14)
    assert (record.molecule, record.trajectory, record.frame_fs) == ("run", "traj00", 0.1)
    np.testing.assert_allclose(record.velocities, velocities, rtol=1e-6)
    np.testing.assert_array_equal(record.masses, atoms.get_masses())
    np.testing.assert_array_equal(record.cell, atoms.cell)
    assert record.pbc.tolist() == [True, False, True] and record.numbers.tolist() == [8, 1, 1]
    if suffix == ".h5":  # whose positions are known to be unwrapped
        np.testing.assert_array_equal(record.positions, positions.astype(np.float32))
    with pytest.raises(ValueError, match="frame_fs is 1, but .* says 0.1 fs"):
        load_records(path, frame_fs=1.0)
    times[-1] += 0.05
    Trajectory(atoms, times, positions, momenta).write(tmp_path / f"uneven{suffix}")
    with pytest.raises(ValueError, match="unevenly spaced"):
        load_records(tmp_path / f"uneven{suffix}")


def test_imports_are_refused(tmp_path):
    path = tmp_path / "a.extxyz"

    def refused(images, message, **kwargs):
        ase.io.write(path, images)
        with pytest.raises(ValueError, match=f"a.extxyz: a: {message}"):
            load_records(path, **kwargs)

    refused(frames(velocities=False), "frame 0 has no velocities")
    refused(frames(times=False), r"the frames carry no info.*give their spacing as frame_fs")
    refused(frames(times=False)[:1], "one frame without a time is a structure and no trajectory")
    refused(frames(), r'frame_fs is 1, but info\["time_fs"\] says 0.5', frame_fs=1.0)
    uneven = frames()
    uneven[4].info["time_fs"] += 0.1
    refused(
        uneven, "frames are unevenly spaced: 0.5 fs from frame 0 to 1, 0.6 fs from frame 3 to 4"
    )
    other = frames()
    other[2].numbers[0] = 16
    refused(other, r"frame 2 has other atoms \(SH2\) than frame 0 \(OH2\)")
    breathing = frames(cell=[9, 9, 9])
    breathing[5].set_cell([9.1, 9, 9])
    refused(breathing, "the cell of frame 5 differs")
    ase.io.write(path, frames()[:1])
    with pytest.raises(ValueError, match="1 frames, expected at least 2"):
        load_records(path, frame_fs=1.0)


CELLS = {
    "cubic": (np.diag([4.0, 4.0, 4.0]), [True] * 3),
    "skewed": (np.array([[5.0, 0, 0], [2.4, 4.5, 0], [-1.0, 1.5, 6.0]]), [True] * 3),
    "slab": (np.array([[5.0, 0, 0], [2.0, 4.5, 0], [0, 0, 0]]), [True, True, False]),
    "wire": (np.array([[0.0, 0, 0], [0, 0, 0], [0.5, 0, 4.0]]), [False, False, True]),
}


@pytest.mark.parametrize("case", CELLS)
def test_unwraps(tmp_path, case):
    cell, pbc = CELLS[case]
    rng = np.random.default_rng(3)
    # a drift of several cells in steps well below half a cell
    steps = rng.uniform(-0.3, 0.5, size=(60, 4, 3))
    positions = rng.uniform(0.5, 1.5, size=(1, 4, 3)) + np.cumsum(steps, axis=0)
    images = []
    for k, frame in enumerate(positions):
        atoms = Atoms("Ar4", frame, cell=cell, pbc=pbc, info={"time": 2.0 * k})
        atoms.set_velocities(np.zeros((4, 3)))
        if k:
            atoms.wrap(eps=1e-12)
        images.append(atoms)
    wrapped = np.stack([atoms.positions for atoms in images])
    assert np.abs(wrapped - positions).max() > 4.0  # there was something to undo
    np.testing.assert_allclose(unwrap(wrapped, cell, np.array(pbc)), positions, atol=1e-9)

    ase.io.write(tmp_path / "a.extxyz", images)
    (record,) = load_records(tmp_path / "a.extxyz")
    np.testing.assert_allclose(record.positions, positions, atol=1e-5)
    np.testing.assert_allclose(record.cell, cell, atol=1e-7)
    assert record.pbc.tolist() == pbc and record.frame_fs == 2.0


def test_damage_anywhere_is_named(tmp_path):
    """A bit of any byte: read as it is, where nothing checks, or refused with the file's name."""
    path = tmp_path / "a.h5"
    writer = Writer(path)
    writer.add_group("mol", NUMBERS, frame_fs=1.0)
    writer.append("mol", "traj00", *motion())
    raw = path.read_bytes()
    refused = 0
    for place in np.random.default_rng(0).integers(0, len(raw), 200):
        spoiled = bytearray(raw)
        spoiled[place] ^= 16
        path.write_bytes(spoiled)
        try:
            load_records(path)
        except ValueError as error:
            assert "a.h5" in str(error)
            refused += 1
    assert refused > 20
