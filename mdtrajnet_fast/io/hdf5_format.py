"""Trajectories in HDF5, .h5, which are H5MD files as well.

H5MD 1.1 (P. de Buyl, P. H. Colberg, F. Höfling, Comput. Phys. Commun. 185, 1546 (2014)) is what
other programs read. Every dataset has an attribute ``unit``. The first six grow with the run;
energies and heat are left out where they are not known::

    times               float64 [frames]            fs
    positions           float64 [frames, atoms, 3]  Angstrom, not wrapped into the cell
    momenta             float64 [frames, atoms, 3]  sqrt(eV amu), ASE's unit
    velocities          float64 [frames, atoms, 3]  Angstrom fs-1, derived from the momenta
    potential_energies  float64 [frames]            eV
    heat                float64 [frames]            eV, what a thermostat has put in by then
    numbers             int64   [atoms]             atomic numbers
    masses              float64 [atoms]             amu
    cell                float64 [3, 3]              Angstrom, rows: cell vectors (zeros: none)
    pbc                 bool    [3]
    arrays/...          [atoms, ...]                what else the atoms have, such as tags
    attributes of the file: format, version, metadata (JSON), info (ASE's JSON)

The groups of H5MD hold the same datasets under its names (hard links, no copies), and what it asks
for besides: numbers of frames and, of periodic systems, the cell of every frame::

    h5md                                       version, author, creator
    particles/trajectory/position, velocity    value, time (those above), step
    particles/trajectory/species, mass         numbers, masses
    particles/trajectory/box                   dimension, boundary; edges with value, time, step
    observables/potential_energy, heat         value, time, step

Files of before there were these groups are read and continued as they are.

A write is a commit of :mod:`.hdf5_files`, whole or not at all; other programs can read the file
during the run (``h5py.File(path, swmr=True)``) and after a kill. One within a commit, a matter of
microseconds, leaves a ``.journal`` beside the file that belongs to it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import ase
import h5py
import numpy as np
from ase.io.jsonio import decode, encode

from .. import __version__
from ..mechanics import velocities_from_momenta
from . import hdf5_files
from .descriptions import as_text, described, stays_out
from .formats import DAMAGE, SCALARS, Array, Format, Metadata, Scalars, file_state

_T = TypeVar("_T")

_FORMAT = "mdtrajnet_fast trajectory"
_VERSION = 1
_SERIES = {
    "times": "fs",
    "positions": "Angstrom",
    "momenta": "sqrt(eV amu)",
    "velocities": "Angstrom fs-1",
}
# Of H5MD alone; they grow as well.
_PARTICLES = "particles/trajectory"
_STEPS = f"{_PARTICLES}/position/step"
_EDGES = f"{_PARTICLES}/box/edges/value"
_OBSERVABLES = {"potential_energies": "potential_energy", "heat": "heat"}


class Sink:
    """See :class:`.formats.Format`."""

    def __init__(self, path: Path, atoms: ase.Atoms, metadata: Metadata) -> None:
        if not path.exists():
            _create(path, atoms, metadata, (np.empty(0), *np.empty((2, 0, len(atoms), 3)), {}))
        self.masses = atoms.get_masses()
        self.file = hdf5_files.Hdf5File(path)

    def write(
        self, start: int, times: Array, positions: Array, momenta: Array, scalars: Scalars
    ) -> None:
        file = self.file.file
        if start == 0:
            _create_scalars(file, scalars)
        _append(file, start, times, positions, momenta, scalars, self.masses)
        self.file.commit()

    def close(self) -> None:
        self.file.close()

    def abandon(self, frames: int) -> None:
        self.file.close(commit=False)


def _series(file: h5py.File) -> list[str]:
    """What grows with the run."""
    return [*_SERIES, *_scalars(file)]


def _scalars(file: h5py.File) -> list[str]:
    return [name for name in SCALARS if name in file]


def _create_series(
    file: h5py.File,
    name: str,
    unit: str | None,
    per_chunk: int,
    tail: tuple[int, ...] = (),
    dtype: type = np.float64,
) -> None:
    made = file.create_dataset(
        name,
        shape=(0, *tail),
        maxshape=(None, *tail),
        chunks=(per_chunk, *tail),
        dtype=dtype,
        # a time that was never written is not a number
        fillvalue=np.nan if dtype is np.float64 else None,
    )
    if unit is not None:
        made.attrs["unit"] = unit


def _create_scalars(file: h5py.File, names: Iterable[str]) -> None:
    for name in names:
        _create_series(file, name, SCALARS[name], file["times"].chunks[0])
        if _STEPS in file:
            _element(file, f"observables/{_OBSERVABLES[name]}", name)


def _create_h5md(file: h5py.File) -> None:
    """The groups of H5MD, of a file that has all else."""
    about = file.create_group("h5md")
    about.attrs["version"] = np.array([1, 1])
    about.create_group("author").attrs["name"] = "unknown"
    creator = about.create_group("creator")
    creator.attrs["name"], creator.attrs["version"] = "mdtrajnet_fast", __version__
    per_chunk, pbc = file["times"].chunks[0], file["pbc"][:]
    _create_series(file, _STEPS, None, per_chunk, dtype=np.int64)
    _element(file, f"{_PARTICLES}/position", "positions")
    _element(file, f"{_PARTICLES}/velocity", "velocities")
    particles = file[_PARTICLES]
    particles["species"], particles["mass"] = file["numbers"], file["masses"]
    box = particles.create_group("box")
    box.attrs["dimension"] = 3
    box.attrs["boundary"] = ["periodic" if on else "none" for on in pbc]
    if pbc.any():
        _create_series(file, _EDGES, "Angstrom", per_chunk, (3, 3))
        _element(file, f"{_PARTICLES}/box/edges", _EDGES)


def _element(file: h5py.File, group: str, values: str) -> None:
    """A time-dependent element of H5MD: a series under its names."""
    element = file.require_group(group)
    for name, held in {"value": values, "time": "times", "step": _STEPS}.items():
        if name not in element:
            element[name] = file[held]


def _append(
    file: h5py.File,
    start: int,
    times: Array,
    positions: Array,
    momenta: Array,
    scalars: Scalars,
    masses: Array,
) -> None:
    columns: dict[str, Any] = {
        "times": times,
        "positions": positions,
        "momenta": momenta,
        "velocities": velocities_from_momenta(momenta, masses),
        **scalars,
    }
    if _STEPS in file:
        columns[_STEPS] = np.arange(start, start + len(times))
    if _EDGES in file:
        columns[_EDGES] = np.broadcast_to(file["cell"][:], (len(times), 3, 3))
    for name, values in columns.items():
        file[name].resize(start + len(times), axis=0)
        file[name][start:] = values


def _create(
    path: Path, atoms: ase.Atoms, metadata: Metadata, frames: tuple[Any, Any, Any, Any]
) -> None:
    """Write a whole file in place of one that there may be."""
    times, positions, momenta, scalars = frames
    # Chunks of about 16 KiB: each write goes through the last one again.
    per_chunk = int(np.clip(16384 // (24 * max(len(atoms), 1)), 1, 1024))

    def fill(made: hdf5_files.Hdf5File) -> None:
        file = made.file
        file.attrs["format"] = _FORMAT
        file.attrs["version"] = _VERSION
        file.attrs["metadata"] = json.dumps(metadata)
        info, arrays = described(atoms)
        texts = as_text(path, info)
        file.attrs["info"] = encode({k: v for k, v in info.items() if k in texts})
        for name, values in arrays.items():
            try:
                text = values.dtype.kind == "U"
                kind = h5py.string_dtype() if text else None
                file.create_dataset(
                    f"arrays/{name}", data=values.tolist() if text else values, dtype=kind
                )
            except (TypeError, ValueError) as error:
                stays_out(path, f"the array {name!r}", str(error))
        for name, value, unit in (
            ("numbers", atoms.numbers.astype(np.int64), "1"),
            ("masses", atoms.get_masses(), "amu"),
            ("cell", atoms.cell[:], "Angstrom"),
            ("pbc", atoms.pbc, "1"),
        ):
            file.create_dataset(name, data=value).attrs["unit"] = unit
        for name, unit in _SERIES.items():
            _create_series(file, name, unit, per_chunk, () if name == "times" else (len(atoms), 3))
        _create_h5md(file)
        _create_scalars(file, scalars)
        for start in range(0, len(times), 16 * per_chunk):
            part = slice(start, min(start + 16 * per_chunk, len(times)))
            x, p = positions[part], momenta[part]
            known = {name: values[part] for name, values in scalars.items()}
            _append(file, start, times[part], x, p, known, atoms.get_masses())
            made.commit()

    hdf5_files.make(path, fill)


@contextmanager
def _open(path: Path) -> Iterator[h5py.File]:
    """A trajectory to read from; what is wrong with it comes as ValueError."""
    try:
        with hdf5_files.reading(path) as file:
            _check(path, file)
            yield file
    except OSError as error:
        if error.errno:  # of another file, as on a full disk
            raise
        raise ValueError(
            f"{path} is damaged, or not a readable HDF5 trajectory: {error}; restore it from a copy"
        ) from error


def _check(path: Path, file: h5py.File) -> None:
    if file.attrs.get("format") != _FORMAT:
        if any("frame_fs" in node.attrs for node in file.values()):
            raise ValueError(
                f"{path} is not one trajectory, but in the data format: read it with "
                "mdtrajnet_fast.data.records.load_records(path)"
            )
        raise ValueError(
            f"{path} was not written by this package: its attribute 'format' is not "
            f"'{_FORMAT}'. Read it with h5py and build a "
            "Trajectory(atoms, times, positions, momenta)"
        )
    if (version := file.attrs["version"]) != _VERSION:
        raise ValueError(
            f"{path} has format version {version}, this package reads {_VERSION}: update it"
        )


def _complete(file: h5py.File) -> int:
    n = min(len(file[name]) for name in _series(file))
    missing = np.flatnonzero(np.isnan(file["times"][:n]))
    return int(missing[0]) if len(missing) else n


def _whole(read: Callable[..., _T]) -> Callable[..., _T]:
    """Read again what a writer changed in the meantime."""

    @wraps(read)
    def again(path: Path, *arguments: Any) -> _T:
        while True:
            before = file_state(path)
            try:
                return read(path, *arguments)
            except DAMAGE:
                if file_state(path) == before:
                    raise

    return again


@_whole
def count(path: Path) -> int:
    """See :class:`.formats.Format`."""
    with _open(path) as file:
        return _complete(file)


def _header(file: h5py.File) -> tuple[ase.Atoms, Metadata]:
    atoms = ase.Atoms(
        numbers=file["numbers"][:], masses=file["masses"][:], cell=file["cell"][:],
        pbc=file["pbc"][:],
    )  # fmt: skip
    atoms.info = decode(file.attrs.get("info", "{}"), always_array=False)
    for name, node in file.get("arrays", {}).items():
        values = node.asstr()[()].astype(str) if node.dtype.kind == "O" else node[()]
        atoms.set_array(name, values)
    return atoms, json.loads(file.attrs["metadata"])


@_whole
def read(path: Path, frames: slice) -> tuple[ase.Atoms, Array, Array, Array, Metadata, Scalars]:
    """See :class:`.formats.Format`."""
    with _open(path) as file:
        atoms, metadata = _header(file)
        start, stop, step = frames.indices(_complete(file))
        # HDF5 reads forward only; NumPy does the rest.
        low, high = (start, max(start, stop)) if step > 0 else (max(stop + 1, 0), start + 1)
        order = slice(None, None, step)
        series = {
            name: file[name][low:high][order] for name in _series(file) if name != "velocities"
        }
        times, x, p = (series[name] for name in ("times", "positions", "momenta"))
        return atoms, times, x, p, metadata, {name: series[name] for name in _scalars(file)}


def truncate(path: Path, frames: int) -> None:
    """See :class:`.formats.Format`."""
    with _open(path) as file:
        series = _series(file)
        if all(len(file[name]) == frames for name in series):
            return
        atoms, metadata = _header(file)
        scalars = {name: file[name] for name in _scalars(file)}
        columns = file["times"][:frames], file["positions"], file["momenta"], scalars
        _create(path, atoms, metadata, columns)


def is_hdf5_trajectory(path: str | Path) -> bool:
    """Whether a file is a .h5 trajectory of this package, and not, say, training data."""
    try:
        with hdf5_files.reading(Path(path)) as file:
            return file.attrs.get("format") == _FORMAT
    except DAMAGE:  # no HDF5 file, or damaged
        return False


def is_h5md_of_others(path: str | Path) -> bool:
    """Whether a file is H5MD, but not of this package."""
    try:
        with hdf5_files.reading(Path(path)) as file:
            return file.attrs.get("format") != _FORMAT and {"h5md", "particles"} <= {*file}
    except DAMAGE:
        return False


FORMAT = Format(Sink, count, read, truncate)
