"""Formats of other programs: what MDAnalysis and ASE read of them, and what comes back."""

from __future__ import annotations

import ase.io
import cases
import h5py
import MDAnalysis
import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.units import fs
from MDAnalysis.lib.formats.libdcd import DCDFile

from mdtrajnet_fast import Trajectory
from mdtrajnet_fast.analysis.spectra import spectra
from mdtrajnet_fast.cli import main
from mdtrajnet_fast.data.records import as_trajectory, load_records, write_records
from mdtrajnet_fast.mechanics import momenta_from_velocities, velocities_from_positions

BINARY = [".dcd", ".xtc", ".trr"]
ROUNDING = {".dcd": 1e-6, ".xtc": 0.0051, ".trr": 1e-5, ".xyz": 1e-8}  # Å


def vibrating(atoms, frames=41, dt=0.5, wavenumber=1500.0):
    """Atoms that all vibrate, in directions of their own."""
    rng = np.random.default_rng(2)
    w = 2 * np.pi * wavenumber / 33356.4  # 1/fs
    times, reach = dt * np.arange(frames), rng.normal(size=(len(atoms), 3), scale=0.05)
    x = atoms.positions + reach * np.sin(w * times)[:, None, None]
    v = w * reach * np.cos(w * times)[:, None, None]
    return Trajectory(atoms, times, x, momenta_from_velocities(v, atoms.get_masses()))


@pytest.mark.parametrize("suffix", BINARY)
@pytest.mark.parametrize("make", [lambda: molecule("CH3OH"), lambda: cases.diamond((1, 1, 2))])
def test_mdanalysis_reads_right_times_and_units(tmp_path, suffix, make):
    trajectory = vibrating(make())
    trajectory.write(tmp_path / f"run{suffix}")
    universe = MDAnalysis.Universe(str(tmp_path / "run.pdb"), str(tmp_path / f"run{suffix}"))
    assert [*universe.atoms.elements] == trajectory.atoms.get_chemical_symbols()
    np.testing.assert_allclose(universe.trajectory.dt, 0.0005, rtol=1e-5)  # ps
    for k, step in enumerate(universe.trajectory):
        np.testing.assert_allclose(step.time, trajectory.times[k] / 1000, atol=1e-8)
        np.testing.assert_allclose(
            step.positions, trajectory.positions[k], atol=ROUNDING[suffix], rtol=1e-6
        )
        if suffix == ".trr":
            v = 1000 * trajectory.velocities[k]
            np.testing.assert_allclose(step.velocities, v, rtol=1e-5, atol=1e-5)
        if trajectory.atoms.pbc.any():
            np.testing.assert_allclose(step.dimensions, trajectory.atoms.cell.cellpar(), rtol=1e-5)


@pytest.mark.parametrize("suffix", [*BINARY, ".xyz"])
def test_what_comes_back(tmp_path, suffix):
    trajectory = vibrating(molecule("CH3OH"))
    path = tmp_path / f"run{suffix}"
    trajectory.write(path)
    if suffix == ".trr":
        (record,) = load_records(path)
    else:
        with pytest.warns(UserWarning, match="derived from positions, 0.5 fs apart"):
            (record,) = load_records(path)
    back = as_trajectory(record)
    np.testing.assert_allclose(back.times, trajectory.times, atol=1e-6)
    assert np.array_equal(back.atoms.numbers, trajectory.atoms.numbers)
    np.testing.assert_allclose(back.positions, trajectory.positions, atol=ROUNDING[suffix] + 1e-6)
    if suffix != ".xtc":  # whose rounding is all there is to see at this spacing
        np.testing.assert_allclose(back.velocities, trajectory.velocities, atol=2e-4)


@pytest.mark.parametrize("suffix", BINARY)
def test_cells_out_of_the_convention_are_turned(tmp_path, suffix):
    """The primitive cell of diamond: no vector is along x."""
    trajectory = vibrating(bulk("C", "diamond", a=3.57))
    path = tmp_path / f"run{suffix}"
    trajectory.write(path)
    if suffix == ".trr":
        (record,) = load_records(path)
    else:
        with pytest.warns(UserWarning, match="derived"):
            (record,) = load_records(path)
    assert record.pbc.all()

    def distances(cell, x):
        return (np.array([[0, 0, 1], [1, -1, 0], [2, 1, 0]]) @ cell + x[1] - x[0]) ** 2

    for ours, theirs in zip(trajectory.positions, record.positions, strict=True):
        np.testing.assert_allclose(
            distances(record.cell, theirs).sum(1),
            distances(trajectory.atoms.cell[:], ours).sum(1),
            atol=0.1 if suffix == ".xtc" else 1e-3,
        )


@pytest.mark.parametrize("make", [lambda: molecule("CH3OH"), lambda: cases.diamond((1, 1, 2))])
def test_h5md_of_other_programs(tmp_path, make):
    trajectory = vibrating(make())
    trajectory.write(tmp_path / "run.trr")
    universe = MDAnalysis.Universe(str(tmp_path / "run.pdb"), str(tmp_path / "run.trr"))
    with MDAnalysis.Writer(str(tmp_path / "run.h5md"), n_atoms=len(trajectory.atoms)) as writer:
        for _ in universe.trajectory:
            writer.write(universe)
    writer.h5md_file.close()  # which MDAnalysis leaves open
    (record,) = load_records(tmp_path / "run.h5md")
    np.testing.assert_allclose(record.frame_fs, 0.5)
    np.testing.assert_allclose(record.positions, trajectory.positions, atol=1e-5)
    np.testing.assert_allclose(record.velocities, trajectory.velocities, atol=1e-6)
    assert record.pbc.all() == trajectory.atoms.pbc.all()


def test_wrapped_files_of_others_are_unwrapped(tmp_path):
    atoms = cases.diamond((1, 1, 1))
    straight = 0.05 * np.arange(200)[:, None, None] * np.array([1.0, 0, 0])
    run = Trajectory(
        atoms, np.arange(200.0), atoms.positions + straight, np.zeros((200, len(atoms), 3))
    )
    wrapped = run.positions % atoms.cell.lengths()
    Trajectory(atoms, run.times, wrapped, run.momenta).write(tmp_path / "run.trr")
    (record,) = load_records(tmp_path / "run.trr")
    steps = np.diff(record.positions, axis=0)
    np.testing.assert_allclose(steps[..., 0], 0.05, atol=1e-4)


def test_ase_reads_xyz_with_times(tmp_path):
    trajectory = vibrating(molecule("CH3OH"))
    trajectory.write(tmp_path / "run.xyz")
    frames = ase.io.read(tmp_path / "run.xyz", ":")
    assert [frame.info["time_fs"] for frame in frames] == trajectory.times.tolist()
    np.testing.assert_allclose(frames[7].positions, trajectory.positions[7], atol=1e-8)
    universe = MDAnalysis.Universe(str(tmp_path / "run.xyz"), dt=0.0005)
    np.testing.assert_allclose(universe.trajectory[7].positions, trajectory.positions[7], rtol=1e-5)


def test_xyz_of_a_crystal_has_its_cell(tmp_path):
    trajectory = vibrating(bulk("C", "diamond", a=3.57))
    trajectory.write(tmp_path / "run.xyz")
    for frame in ase.io.read(tmp_path / "run.xyz", ":"):
        assert frame.pbc.all() and np.array_equal(frame.cell, trajectory.atoms.cell)
    with pytest.warns(UserWarning, match="derived"):
        (record,) = load_records(tmp_path / "run.xyz")
    assert record.pbc.all() and np.array_equal(record.cell, trajectory.atoms.cell)
    universe = MDAnalysis.Universe(str(tmp_path / "run.xyz"))
    np.testing.assert_allclose(universe.trajectory[7].positions, trajectory.positions[7], rtol=1e-5)


def test_dcd_of_a_molecule_has_no_cell(tmp_path):
    """Not one of 0 Å and 0°, as MDAnalysis writes it: OVITO makes positions of NaN of that."""
    trajectory = vibrating(molecule("CH3OH"))[3:]
    trajectory.write(tmp_path / "run.dcd")
    with DCDFile(str(tmp_path / "run.dcd")) as file:
        assert not file.header["is_periodic"]
    universe = MDAnalysis.Universe(str(tmp_path / "run.pdb"), str(tmp_path / "run.dcd"))
    assert all(step.dimensions is None for step in universe.trajectory)
    times = [1000 * step.time for step in universe.trajectory]
    np.testing.assert_allclose(times, trajectory.times, rtol=1e-6)


@pytest.mark.parametrize("make", [lambda: molecule("CH3OH"), lambda: cases.diamond((1, 1, 2))])
def test_ovito_reads_right_times_and_units(tmp_path, monkeypatch, make):
    monkeypatch.setenv("QT_QPA_PLATFORM", "offscreen")
    read = pytest.importorskip("ovito.io", reason="needs OVITO: pip install ovito").import_file
    trajectory = vibrating(make())[3:]
    atoms = trajectory.atoms
    times = {".extxyz": ("time_fs", 1), ".xyz": ("time_fs", 1)}  # attribute, its unit in fs
    times |= {".xtc": ("Time", 1000), ".trr": ("Time", 1000), ".dcd": ("Time", 48.88821)}
    for suffix, (time, unit) in times.items():
        trajectory.write(tmp_path / f"run-{suffix[1:]}{suffix}")
        centred = {"centering": False} if suffix in BINARY and atoms.pbc.any() else {}
        frames = read(str(tmp_path / f"run-{suffix[1:]}{suffix}"), **centred)
        assert frames.source.num_frames == len(trajectory)
        for k in range(len(trajectory)):
            seen = frames.compute(k)
            at = unit * seen.attributes[time]
            np.testing.assert_allclose(at, trajectory.times[k], rtol=1e-6, atol=1e-9)
            np.testing.assert_allclose(
                seen.particles.positions, trajectory.positions[k], atol=ROUNDING.get(suffix, 1e-12)
            )
            if atoms.pbc.any():
                assert all(seen.cell.pbc)
                np.testing.assert_allclose(seen.cell[:, :3], atoms.cell[:].T, rtol=1e-5, atol=1e-12)
            if suffix in (".extxyz", ".xyz"):
                kinds = seen.particles.particle_types
                symbols = [kinds.type_by_id(kind).name for kind in kinds]
                assert symbols == atoms.get_chemical_symbols()
            if suffix == ".extxyz":
                v = seen.particles["momenta"] / seen.particles["masses"][:][:, None] * fs
                np.testing.assert_allclose(v, trajectory.velocities[k], rtol=1e-12, atol=1e-15)
            if suffix == ".trr":
                v = seen.particles.velocities / 1000  # of Å/ps
                np.testing.assert_allclose(v, trajectory.velocities[k], rtol=1e-5, atol=1e-8)


def test_velocities_from_positions():
    """The transfer function that the docstring gives; exact for a parabola."""
    t = np.arange(12.0)[:, None, None]
    np.testing.assert_allclose(velocities_from_positions(t**2 + 0 * t, 1.0), 2 * t)
    for x in (0.3, 1.0, 1.5):  # w dt
        k = np.arange(400)
        found = velocities_from_positions(np.sin(x * k)[:, None, None], 0.5)[100:300, 0, 0]
        slope = found @ np.cos(x * k[100:300]) / np.sum(np.cos(x * k[100:300]) ** 2)
        share = 3 * np.sin(x) / (x * (2 + np.cos(x)))
        np.testing.assert_allclose(slope / (x / 0.5), share, rtol=1e-4)
    with pytest.raises(ValueError, match="need four"):
        velocities_from_positions(np.zeros((3, 1, 3)), 1.0)


@pytest.mark.filterwarnings("ignore:.*derived from positions")
def test_commands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    vibrating(molecule("CH3OH"), frames=1201, dt=1.0).write("run.h5")
    for name in ("a.dcd", "b.trr", "c.xyz", "d.traj"):
        assert main(["trjconv", "run.h5", name]) == 0
    assert main("trjconv run.h5 e.xtc --skip 100 --every 2".split()) == 0
    assert MDAnalysis.Universe("e.pdb", "e.xtc").trajectory.n_frames == 551
    whole = spectra(Trajectory.read("run.h5"))
    for name in ("a.dcd", "b.trr", "c.xyz"):
        (record,) = load_records(name)
        found = spectra(as_trajectory(record))
        assert abs(found.motion - whole.motion).max() < 0.01 * whole.motion.max()
        assert main(["spectrum", name]) == 0
    out = capsys.readouterr().out
    assert out.count("beside the highest: 1501 (1.00)") == 3
    assert main("evaluate b.trr --model molecules-nve-small --pairs 20 --times 1 2".split()) == 0
    assert main(["analyze", "a.dcd"]) == 0
    assert (tmp_path / "a-analysis" / "vdos.csv").exists()
    assert main("trjconv run.h5 f.xtc --every 0".split()) == 2
    assert main("trjconv run.h5 f.what".split()) == 2
    said = capsys.readouterr().err
    assert "--every is one frame in so many" in said and "the name must end in .traj" in said


@pytest.mark.parametrize("suffix", [".dcd", ".xyz", ".extxyz"])
def test_structure_needs_no_velocities(tmp_path, capsys, suffix):
    """Frames too far apart to tell velocities have the g(r) and diffusion of the same with them."""
    frames, rng = 60, np.random.default_rng(5)
    atoms = bulk("Ar", "fcc", a=5.4, cubic=True).repeat(2)
    walk = np.cumsum(rng.normal(size=(frames, len(atoms), 3), scale=0.1), axis=0)
    p = rng.normal(size=walk.shape)
    whole = Trajectory(atoms, 100.0 * np.arange(frames), atoms.positions + walk, p)
    whole.write(tmp_path / "whole.h5")
    still = tmp_path / f"still{suffix}"
    if suffix == ".extxyz":  # of another program
        images = [ase.Atoms(atoms, positions=x) for x in whole.positions]
        ase.io.write(still, images, columns=["symbols", "positions"])
    else:
        whole.write(still)
    asked = ["analyze", str(still), *([] if suffix == ".dcd" else ["--frame", "100"])]
    assert main(["analyze", str(tmp_path / "whole.h5"), "--rdf", "--msd"]) == 0
    assert main(asked) == 0
    said = capsys.readouterr().out
    for name in ("vdos", "kinetic"):
        assert f"No {name}: the file holds no velocities, and its frames are too far" in said
    for name in ("rdf", "msd"):
        ours, theirs = (
            np.loadtxt(tmp_path / f"{of}-analysis" / f"{name}.csv", delimiter=",", skiprows=1)
            for of in ("still", "whole")
        )
        np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=1e-3)
    again = tmp_path / f"again{'.xyz' if suffix == '.dcd' else '.dcd'}"
    assert main(["trjconv", str(still), str(again), *asked[2:]]) == 0
    (record,) = load_records(again, velocities=False, frame_fs=100.0)
    np.testing.assert_allclose(record.positions, whole.positions, atol=1e-4)
    assert main(["trjconv", str(still), str(tmp_path / "again.trr"), *asked[2:]]) == 2
    with pytest.raises(ValueError, match="is not finite"):
        write_records(tmp_path / "refused.h5", [record])
    known = load_records(tmp_path / "whole.h5")
    write_records(tmp_path / "unknown.h5", known)
    with h5py.File(tmp_path / "unknown.h5", "r+") as file:
        file["whole/traj00/velocities"][:] = np.nan
    with pytest.raises(ValueError, match="traj00: velocities are nan, expected finite numbers"):
        load_records(tmp_path / "unknown.h5")
    assert main([*asked, "--vdos"]) == 2
    assert "the file holds no velocities" in capsys.readouterr().err
    with pytest.raises(ValueError, match="velocities"):
        load_records(still, frame_fs=None if suffix == ".dcd" else 100.0)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # MDAnalysis
def test_refused(tmp_path):
    trajectory = vibrating(molecule("CH3OH"))
    trajectory.write(tmp_path / "a.xtc")
    with pytest.raises(FileExistsError, match=r"a\.xtc exists"):
        trajectory.write(tmp_path / "a.xtc")
    with pytest.raises(FileExistsError, match=r"a\.pdb exists"):
        trajectory.write(tmp_path / "a.dcd")
    (tmp_path / "a.xtc").rename(tmp_path / "b.xtc")
    with pytest.raises(ValueError, match=r"b\.xtc does not tell its atoms.*b\.pdb"):
        load_records(tmp_path / "b.xtc")
    molecule("H2O").write(tmp_path / "b.pdb")
    with pytest.raises(ValueError, match=r"41 frames of 6 atoms, b\.pdb has 3 atoms"):
        load_records(tmp_path / "b.xtc")
    (tmp_path / "a.trr").write_bytes(b"not a trajectory")
    with pytest.raises(ValueError, match="MDAnalysis cannot read it"):
        load_records(tmp_path / "a.trr")
    vibrating(molecule("CH3OH"), dt=5.0).write(tmp_path / "c.dcd")
    with pytest.raises(ValueError, match="positions every 5 fs do not tell them"):
        load_records(tmp_path / "c.dcd")
    with pytest.raises(FileNotFoundError, match="no folder .*nowhere"):
        trajectory.write(tmp_path / "nowhere" / "d.xtc")
    uneven = Trajectory(
        trajectory.atoms, [0.0, 1.0, 3.0], trajectory.positions[:3], trajectory.momenta[:3]
    )
    with pytest.raises(ValueError, match="unevenly spaced"):
        uneven.write(tmp_path / "d.dcd")
    assert not [*tmp_path.glob("*.part.*"), *tmp_path.glob("d.*")]
