"""Trajectories for other programs, and theirs: .dcd, .xtc, .trr, plain .xyz, and others' H5MD.

These hold less than the formats of this package: positions in single precision (.xyz: eight
decimals; .xtc: rounded to 0.01 Å), no masses and no energies, velocities only in .trr, elements
only in .xyz. All others therefore go with a file of the same name that tells the atoms,
``run.pdb`` with ``run.xtc``: it is written beside, and looked for in reading. MDAnalysis
writes and reads them (R. J. Gowers et al., Proc. 15th Python in Science Conf. 98 (2016)), ASE .xyz.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import ase
import ase.io
import numpy as np
from ase.io.xyz import write_xyz

from ..mechanics import check_even
from .formats import Array

if TYPE_CHECKING:
    from .trajectory import Trajectory

BINARY = (".dcd", ".xtc", ".trr")
SUFFIXES = (*BINARY, ".xyz")
WITHOUT_VELOCITIES = (".dcd", ".xtc", ".xyz")
# Files of the atoms, in the order in which they are looked for.
_ATOMS = (".pdb", ".gro", ".extxyz", ".xyz", ".cif", ".traj")


class Frames(NamedTuple):
    """atoms: elements, cell and pbc. times [frames] fs; positions [frames, atoms, 3] Å; velocities
    [frames, atoms, 3] Å/fs, None where the format has none.
    """

    atoms: ase.Atoms
    times: Array
    positions: Array
    velocities: Array | None


def write(trajectory: Trajectory, path: Path) -> list[Path]:
    """Write a trajectory to a new file, and for .dcd, .xtc and .trr its first frame to a .pdb.

    A cell whose vectors are not those of the convention (the first along x, the second in the xy
    plane), which these files cannot hold, is turned to it, with all atoms.

    Files are there whole or not at all. Returns the paths. Raises FileExistsError,
    FileNotFoundError where there is no such folder, ValueError for frames that are not evenly
    spaced (.dcd) and a suffix that is none of :data:`SUFFIXES`, ImportError without MDAnalysis.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"{path}: expected a name that ends in {', '.join(SUFFIXES)}")
    paths = [path] if suffix == ".xyz" else [path, path.with_suffix(".pdb")]
    for one in paths:
        if one.exists():
            raise FileExistsError(f"{one} exists and is never overwritten: choose another name")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent} for {path.name}; make it first")
    parts = [one.with_name(f"{one.stem}.part{one.suffix}") for one in paths]
    try:
        if suffix == ".xyz":
            _write_xyz(trajectory, parts[0])
        else:
            _write_binary(trajectory, *parts)
        for part, one in zip(parts, paths, strict=True):
            part.replace(one)
    finally:
        for part in parts:
            part.unlink(missing_ok=True)
    return paths


def _write_xyz(trajectory: Trajectory, path: Path) -> None:
    """With the comment line of extended XYZ, without which OVITO sees neither times nor a cell."""
    about = "Properties=species:S:1:pos:R:3"
    if trajectory.atoms.pbc.any():
        cell = " ".join(repr(float(c)) for c in trajectory.atoms.cell[:].ravel())
        about = f'Lattice="{cell}" {about}'
    about += ' pbc="{} {} {}"'.format(*("T" if on else "F" for on in trajectory.atoms.pbc))
    with path.open("w") as file:
        for atoms in trajectory:
            comment = f"{about} time_fs={atoms.info['time_fs']:.9g}"
            write_xyz(file, [atoms], comment=comment, fmt="%16.8f")


def _write_binary(trajectory: Trajectory, path: Path, first: Path) -> None:
    times = trajectory.times
    spacing = float(times[1] - times[0]) if len(times) > 1 else 1.0
    settings = {}
    if path.suffix.lower() == ".dcd":
        check_even(times, path.name, rtol=1e-6)
        settings = {"dt": spacing / 1000, "istart": round(times[0] / spacing)}
    mda = _mdanalysis()
    atoms = trajectory[0]
    cell, turn, dimensions = atoms.cell, np.eye(3), None
    if atoms.pbc.any():
        cell, rotation = cell.standard_form()
        turn, dimensions = rotation.T, cell.cellpar()
    if dimensions is None and path.suffix.lower() == ".dcd":
        _write_dcd_without_cell(mda, trajectory, path, settings)
        ase.io.write(first, atoms)
        return
    atoms.set_cell(cell)
    atoms.positions = atoms.positions @ turn
    universe = mda.Universe.empty(len(atoms), trajectory=True, velocities=True)
    step = universe.trajectory.ts
    step.dimensions = dimensions
    with warnings.catch_warnings():  # of a cell that a molecule has not
        warnings.simplefilter("ignore")
        with mda.Writer(str(path), len(atoms), **settings) as writer:
            for k, time in enumerate(times):
                step.frame, step.time, step.data["step"] = k, time / 1000, k
                step.positions = trajectory.positions[k] @ turn
                step.velocities = 1000 * trajectory.velocities[k] @ turn
                writer.write(universe)
    ase.io.write(first, atoms)


def _write_dcd_without_cell(
    mda: ModuleType, trajectory: Trajectory, path: Path, settings: dict[str, Any]
) -> None:
    """A .dcd without cells; MDAnalysis would write some of 0 Å and 0°, of which OVITO makes NaN."""
    with mda.lib.formats.libdcd.DCDFile(str(path), "w") as file:
        file.write_header(
            remarks="",
            natoms=len(trajectory.atoms),
            istart=settings["istart"],
            nsavc=1,
            delta=mda.units.convert(settings["dt"], "ps", "AKMA"),
            is_periodic=0,
        )
        for positions in trajectory.positions:
            file.write(xyz=positions.astype(np.float32), box=np.zeros(6))


def read(path: Path) -> Frames:
    """Read a .dcd, .xtc, .trr or H5MD file of any program, with the atoms of the file beside it.

    Raises FileNotFoundError where there is no such file, ValueError for one that cannot be read, of
    other atoms, or with a cell that changes, ImportError without MDAnalysis.
    """
    beside = next((p for s in _ATOMS if (p := path.with_suffix(s)).is_file()), None)
    if beside is None:
        raise FileNotFoundError(
            f"{path} does not tell its atoms: put a file of the same name beside it that does, "
            f"such as {path.with_suffix('.pdb').name} (one of {', '.join(_ATOMS)})"
        )
    atoms = ase.io.read(beside, index=0)
    assert isinstance(atoms, ase.Atoms)
    mda = _mdanalysis()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            kind = None if path.suffix.lower() in BINARY else "H5MD"
            reader = mda.coordinates.core.reader(str(path), format=kind)
            times, x, v, boxes = [], [], [], []
            for step in reader:
                times.append(1000 * step.time)
                x.append(step.positions.astype(np.float64))
                v.append(step.velocities / 1000 if step.has_velocities else None)
                boxes.append(None if step.dimensions is None else step.dimensions.astype(float))
    except Exception as error:  # readers of MDAnalysis raise anything
        raise ValueError(
            f"{path}: MDAnalysis cannot read it ({type(error).__name__}: {error})"
        ) from None
    if not x or len(x[0]) != len(atoms):
        raise ValueError(
            f"{path} has {len(x)} frames of {len(x[0]) if x else 0} atoms, {beside.name} has "
            f"{len(atoms)} atoms; expected the same"
        )
    atoms.pbc = boxes[0] is not None and bool(np.any(boxes[0][:3]))
    if atoms.pbc.any():
        if any(box is None for box in boxes) or np.ptp(np.array(boxes), axis=0).max() > 1e-3:
            raise ValueError(f"{path}: the cell changes; only a constant cell can be used")
        atoms.cell = mda.lib.mdamath.triclinic_vectors(boxes[0])
    else:
        atoms.cell = None
    known = None if any(each is None for each in v) else np.array(v, dtype=np.float64)
    return Frames(atoms, np.array(times), np.array(x), known)


def _mdanalysis() -> ModuleType:
    try:
        import MDAnalysis  # here, for it takes long to import
    except ImportError as error:
        raise ImportError(
            f"{', '.join(BINARY)} files are written and read by MDAnalysis ({error}): "
            'pip install "mdtrajnet_fast[formats]"'
        ) from error
    return MDAnalysis
