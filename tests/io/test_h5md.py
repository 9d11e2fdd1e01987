"""HDF5 files are H5MD 1.1, as MDAnalysis and the specification have it; older files go on."""

from __future__ import annotations

import shutil

import cases
import h5py
import MDAnalysis
import numpy as np
import pytest
from ase.build import molecule

from mdtrajnet_fast import Trajectory
from mdtrajnet_fast.io.trajectory import open_writer, truncate

METADATA = {"model": "made up"}


def made_up(atoms, frames=7, dt=2.5):
    """Frames of noise, every number different."""
    rng = np.random.default_rng(1)
    x = atoms.positions + rng.normal(size=(frames, len(atoms), 3))
    p = rng.normal(size=x.shape)
    energies = {"potential_energies": rng.normal(size=frames), "heat": rng.normal(size=frames)}
    return Trajectory(atoms, dt * np.arange(frames) + 10, x, p, METADATA, **energies)


@pytest.mark.parametrize("suffix", [".h5", ".h5md"])
@pytest.mark.parametrize("make", [lambda: molecule("C2H6"), lambda: cases.diamond((1, 1, 2))])
def test_mdanalysis_reads_them(tmp_path, make, suffix):
    trajectory = made_up(make())
    trajectory.write(tmp_path / f"run{suffix}")
    trajectory.atoms.write(tmp_path / "top.xyz", format="xyz")
    path = str(tmp_path / f"run{suffix}")
    universe = MDAnalysis.Universe(str(tmp_path / "top.xyz"), path, format="H5MD")
    assert universe.trajectory.n_frames == len(trajectory)
    for k, step in enumerate(universe.trajectory):
        np.testing.assert_allclose(step.time, trajectory.times[k] / 1000)
        np.testing.assert_allclose(step.positions, trajectory.positions[k], rtol=1e-6)
        np.testing.assert_allclose(step.velocities, 1000 * trajectory.velocities[k], rtol=1e-6)
        assert step.data["step"] == k
        assert step.data["potential_energy"] == trajectory.potential_energies[k]
        assert step.data["heat"] == trajectory.heat[k]
        if trajectory.atoms.pbc.any():
            np.testing.assert_allclose(step.dimensions, trajectory.atoms.cell.cellpar(), rtol=1e-6)
        else:
            assert step.dimensions is None


def test_what_the_specification_asks_for(tmp_path):
    atoms = cases.diamond((1, 1, 2))
    atoms.pbc = (True, True, False)
    with open_writer(tmp_path / "run.h5", atoms, metadata=METADATA) as writer:
        whole = made_up(atoms)
        for part in (whole[:3], whole[3:]):
            writer.write(part.times, part.positions, part.momenta, **part.scalars)
    with h5py.File(tmp_path / "run.h5") as file:
        assert file["h5md"].attrs["version"].tolist() == [1, 1]
        assert {"name"} <= {*file["h5md/author"].attrs}
        assert {"name", "version"} <= {*file["h5md/creator"].attrs}
        group = file["particles/trajectory"]
        for name in ("position", "velocity", "box/edges"):
            element = group[name]
            assert len(element["value"]) == len(element["time"]) == len(element["step"]) == 7
            assert element["step"].dtype.kind == "i" and element["time"].attrs["unit"] == "fs"
            assert element["time"] == file["times"]  # one dataset, two names
        assert group["position/value"] == file["positions"]
        assert group["position/value"].attrs["unit"] == "Angstrom"
        assert group["velocity/value"].attrs["unit"] == "Angstrom fs-1"
        assert group["box"].attrs["dimension"] == 3
        assert group["box"].attrs["boundary"].tolist() == ["periodic", "periodic", "none"]
        assert group["species"] == file["numbers"] and group["mass"] == file["masses"]
        assert file["observables/heat/value"].attrs["unit"] == "eV"


def test_files_of_before_are_read_continued_and_cut(tmp_path):
    path = tmp_path / "run.h5"
    shutil.copy(cases.DATA / "before-h5md.h5", path)
    old = Trajectory.read(path)
    assert old.times.tolist() == [0, 2, 4] and old.potential_energies.tolist() == [-1, -2, -3]
    with open_writer(path, old.atoms, append=True) as writer:
        writer.write([6.0], old.positions[:1], old.momenta[:1], potential_energies=[-4.0])
    longer = Trajectory.read(path)
    assert longer.times.tolist() == [0, 2, 4, 6]
    np.testing.assert_array_equal(longer.positions[:3], old.positions)
    truncate(path, 2)  # writes it anew, as files are now
    np.testing.assert_array_equal(Trajectory.read(path).momenta, old.momenta[:2])
    with h5py.File(path) as file:
        assert file["particles/trajectory/position/step"][:].tolist() == [0, 1]


def test_frames_that_are_cut_off_leave_h5md_whole(tmp_path):
    path = tmp_path / "run.h5"
    made_up(cases.diamond((1, 1, 2))).write(path)
    truncate(path, 4)
    with h5py.File(path) as file:
        for name in ("position/step", "position/time", "velocity/value", "box/edges/value"):
            assert len(file[f"particles/trajectory/{name}"]) == 4
