"""Trajectories: in memory (:class:`Trajectory`) and streamed to disk (:func:`open_writer`).

The state of a run is what ``ase.Atoms`` stores: positions in Å and momenta in ASE units,
sqrt(eV amu), both float64. Every format here holds these numbers to the last bit, so a run that is
read back continues exactly as it would have without the stop. Velocities in Å/fs are derived from
the momenta by :func:`velocities_from_momenta`, everywhere.

Formats, chosen by suffix
-------------------------
``.traj``
    ASE's own binary format; ``info["time_fs"]`` in every frame.
``.extxyz``
    Text with 17 significant digits (``ase.io.write`` would keep 8 decimals): columns ``species``,
    ``pos`` (Å), ``momenta`` (ASE units), ``masses`` (amu); ``time_fs`` in every comment line.
``.h5`` (or ``.hdf5``)
    HDF5, every dataset with an attribute ``unit``; the first four grow with the run::

        times       float64 [frames]            fs
        positions   float64 [frames, atoms, 3]  Å, not wrapped into the cell
        momenta     float64 [frames, atoms, 3]  sqrt(eV amu), ASE's unit
        velocities  float64 [frames, atoms, 3]  Å/fs, derived from the momenta
        numbers     int64   [atoms]             atomic numbers
        masses      float64 [atoms]             amu
        cell        float64 [3, 3]              Å, rows are the cell vectors (zeros: no cell)
        pbc         bool    [3]
        attributes of the file: format, version, metadata (JSON)

The run's metadata (any JSON object) is stored once: in ``info["metadata"]`` of frame 0, which
``ase.io.read`` returns, or in the HDF5 attribute. Masses, thus isotopes, are in every format.

What survives an interruption
-----------------------------
Each ``write`` call is handed to the operating system before it returns. A killed process loses at
most the frames of the call it was in; earlier frames stay readable in all three formats:

* ``.traj``: ASE writes the data of a frame, then its place in the index, then the number of frames.
* ``.extxyz``: a frame counts when all its lines are there; a torn last frame is left out.
* ``.h5`` is written in HDF5's single-writer mode (SWMR), which orders its own bookkeeping so that
  the file is valid at every moment; ``times`` is written last, and a frame counts once its time is
  there. The file can be read during the run with ``h5py.File(path, swmr=True)``. After a kill it
  still carries the mark "open for writing", which other programs refuse (``h5clear`` removes
  it); :func:`truncate` and ``open_writer(append=True)`` remove the mark by rewriting the file.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import ase
import ase.io
import h5py
import numpy as np
from ase.io.trajectory import TrajectoryReader as AseReader
from ase.io.trajectory import TrajectoryWriter as AseWriter
from numpy.typing import ArrayLike, NDArray

from ..mechanics import velocities_from_momenta

if TYPE_CHECKING:
    from ..analysis.trust import TrustSummary

Array = NDArray[np.float64]
Metadata = dict[str, Any]


# ------------------------------------------------------------------------------- in memory


class Trajectory:
    """Frames of one system.

    Arguments
        atoms: numbers, masses, cell and pbc are taken from it; nothing else is kept.
        times: [frames] fs.
        positions: [frames, atoms, 3] Å, not wrapped into the cell.
        momenta: [frames, atoms, 3] sqrt(eV amu), ASE's unit; see :func:`momenta_from_velocities`.
        metadata: what produced the frames (model, seed, ...), JSON-able; kept in files.

    Attributes: those, as float64 arrays, with ``velocities`` [frames, atoms, 3] in Å/fs, and
    ``trust``, the :class:`~mdtrajnet_fast.TrustSummary` of the run that made it, or None.

    ``trajectory[i]`` is an ``ase.Atoms`` with momenta and ``info["time_fs"]``; a slice is a
    Trajectory; iteration goes over the ``ase.Atoms``.

    Raises ValueError if the shapes do not match each other.
    """

    def __init__(
        self,
        atoms: ase.Atoms,
        times: ArrayLike,
        positions: ArrayLike,
        momenta: ArrayLike,
        metadata: Metadata | None = None,
    ) -> None:
        self.atoms = _template(atoms)
        self.times, self.positions, self.momenta = frame_arrays(
            len(atoms), times, positions, momenta
        )
        self.metadata: Metadata = dict(metadata or {})
        self.trust: TrustSummary | None = None

    @property
    def velocities(self) -> Array:
        """[frames, atoms, 3] Å/fs, from the momenta by :func:`velocities_from_momenta`."""
        return velocities_from_momenta(self.momenta, self.atoms.get_masses())

    def __len__(self) -> int:
        return len(self.times)

    @overload
    def __getitem__(self, index: slice) -> Trajectory: ...
    @overload
    def __getitem__(self, index: int) -> ase.Atoms: ...
    def __getitem__(self, index: int | slice) -> ase.Atoms | Trajectory:
        if isinstance(index, slice):
            return Trajectory(
                self.atoms,
                self.times[index],
                self.positions[index],
                self.momenta[index],
                self.metadata,
            )
        return _frame(self.atoms, self.times[index], self.positions[index], self.momenta[index])

    def __iter__(self) -> Iterator[ase.Atoms]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        span = f", {self.times[0]:g} to {self.times[-1]:g} fs" if len(self) else ""
        periodic = "".join(axis for axis, on in zip("abc", self.atoms.pbc, strict=True) if on)
        return (
            f"Trajectory({self.atoms.get_chemical_formula()}: {len(self.atoms)} atoms, "
            f"{len(self)} frames{span}{f', periodic along {periodic}' if periodic else ''})"
        )

    def write(self, path: str | Path) -> None:
        """Write to a new file; the suffix chooses the format.

        Raises ValueError if there are no frames; other errors as :func:`open_writer`.
        """
        if len(self) == 0:
            raise ValueError(f"this trajectory has no frames to write to {path}")
        with open_writer(path, self.atoms, metadata=self.metadata) as writer:
            writer.write(self.times, self.positions, self.momenta)

    @classmethod
    def read(cls, path: str | Path, frames: slice = slice(None)) -> Trajectory:
        """Read a file written by this package, exact to the bit; ``frames`` selects among the
        complete ones (``slice(-1, None)``: the last). An unfinished last frame is left out.

        Raises FileNotFoundError, and ValueError for an unknown suffix, a damaged file, one of
        another origin, or one without a complete frame.
        """
        path, fmt = _known(path)
        if not path.exists():
            raise FileNotFoundError(f"no trajectory file {path}")
        if fmt.count(path) == 0:
            raise ValueError(
                f"{path} holds no complete frame (the run ended before its first write); "
                "remove it, or begin it again with open_writer(path, atoms, append=True)"
            )
        return cls(*fmt.read(path, frames))


def _template(atoms: ase.Atoms) -> ase.Atoms:
    return ase.Atoms(
        numbers=atoms.numbers, masses=atoms.get_masses(), cell=atoms.cell, pbc=atoms.pbc
    )


def _frame(template: ase.Atoms, time: float, positions: Array, momenta: Array) -> ase.Atoms:
    atoms = template.copy()
    atoms.positions[:] = positions
    atoms.set_array("momenta", momenta, float, (3,))
    atoms.info["time_fs"] = float(time)
    return atoms


def frame_arrays(
    atoms: int, times: ArrayLike, positions: ArrayLike, momenta: ArrayLike
) -> tuple[Array, Array, Array]:
    """Times, positions and momenta as float64; ValueError for shapes that do not match."""
    t, x, p = (np.asarray(a, dtype=np.float64) for a in (times, positions, momenta))
    if t.ndim != 1 or x.shape != (len(t), atoms, 3) or p.shape != x.shape:
        raise ValueError(
            f"got times {t.shape}, positions {x.shape} and momenta {p.shape} for {atoms} atoms; "
            f"expected [frames], [frames, {atoms}, 3] and [frames, {atoms}, 3]"
        )
    return t, x, p


# ------------------------------------------------------------------------------- on disk


def open_writer(
    path: str | Path,
    atoms: ase.Atoms,
    *,
    append: bool = False,
    metadata: Metadata | None = None,
) -> TrajectoryWriter:
    """Open a trajectory file to stream frames into; a context manager.

    Arguments
        path: ends in .traj, .extxyz or .h5.
        atoms: the system: numbers, masses, cell, pbc.
        append: continue the file if it exists, after dropping an unfinished last frame. It must
            hold the same system, and the same metadata if any is given.
        metadata: a JSON object to keep with the file (model, seed, time step, ...).

    Raises FileExistsError if the file exists and ``append`` is off; FileNotFoundError if its folder
    does not exist; ValueError for an unknown suffix, metadata that JSON cannot hold, or a file that
    is damaged or belongs to another run.
    """
    path, fmt = _known(path)
    metadata = None if metadata is None else _as_json(metadata)
    atoms = _template(atoms)
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"cannot write {path.name}: there is no folder {path.parent}; make it first"
        )
    frames, last = 0, -np.inf
    if path.exists():
        if not append:
            raise FileExistsError(
                f"{path} exists and is never overwritten: choose another name, remove it, or "
                "continue it with append=True"
            )
        frames = fmt.count(path)
    if frames:
        end = Trajectory.read(path, slice(frames - 1, frames))
        _same_system(path, end.atoms, atoms)
        _same_metadata(path, end.metadata, metadata)
        last = float(end.times[0])
        fmt.truncate(path, frames)
    else:
        path.unlink(missing_ok=True)  # append to a file without a frame: begin it again
    return TrajectoryWriter(fmt.sink(path, atoms, metadata or {}), len(atoms), frames, last)


class TrajectoryWriter:
    """What :func:`open_writer` returns. ``frames`` counts the frames in the file."""

    def __init__(self, sink: Any, atoms: int, frames: int, last_time: float) -> None:
        self._sink, self._atoms, self.frames, self._last = sink, atoms, frames, last_time

    def write(self, times: ArrayLike, positions: ArrayLike, momenta: ArrayLike) -> None:
        """Append frames and hand them to the operating system: times [k] fs, positions
        [k, atoms, 3] Å, momenta [k, atoms, 3] sqrt(eV amu).

        Raises ValueError for wrong shapes or times that are not finite and increasing: a restart
        cannot write a frame twice.
        """
        t, x, p = frame_arrays(self._atoms, times, positions, momenta)
        if len(t) == 0:
            return
        steps = np.diff(t, prepend=self._last)
        if not (np.all(np.isfinite(t)) and np.all(steps > 0)):
            raise ValueError(
                f"got frame times {t[0]:g} ... {t[-1]:g} fs after {self._last:g} fs; expected "
                "finite, increasing times (on a restart, truncate() drops the frames written "
                "after the state it continues from)"
            )
        self._sink.write(self.frames, t, x, p)
        self.frames += len(t)
        self._last = float(t[-1])

    def close(self) -> None:
        """Close the file; all that was written is in it already."""
        self._sink.close()

    def __enter__(self) -> TrajectoryWriter:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def count_frames(path: str | Path) -> int:
    """The number of complete frames in a trajectory file; an unfinished last one is not counted.

    Raises FileNotFoundError, and ValueError for an unknown suffix or a file that is damaged or of
    another origin.
    """
    path, fmt = _known(path)
    if not path.exists():
        raise FileNotFoundError(f"no trajectory file {path}")
    return fmt.count(path)


def truncate(path: str | Path, frames: int) -> None:
    """Keep the first ``frames`` frames of a trajectory file and drop the rest.

    A kill at any moment leaves either the old file or the new one. Dropping frames of a .h5 file
    rewrites what is kept; the other two are cut in place.

    Raises ValueError if the file has fewer complete frames; otherwise as :func:`count_frames`.
    """
    held = count_frames(path)
    if not 0 <= frames <= held:
        raise ValueError(f"cannot keep {frames} frames of {path}: it holds {held} complete ones")
    path, fmt = _known(path)
    fmt.truncate(path, frames)


def is_hdf5_trajectory(path: str | Path) -> bool:
    """Whether a file is a .h5 trajectory of this package, and not, say, training data."""
    try:
        with h5py.File(path, "r", swmr=_h5_left_open(Path(path))) as file:
            return file.attrs.get("format") == _H5_FORMAT
    except (OSError, RuntimeError, ValueError):  # no HDF5 file, or damaged
        return False


def _known(path: str | Path) -> tuple[Path, _Format]:
    path = Path(path)
    if path.is_symlink():
        path = path.resolve()  # files that are rewritten replace what the link leads to
    if path.suffix.lower() not in _FORMATS:
        raise ValueError(
            f"cannot tell the trajectory format of '{path}': the name must end in "
            f"{', '.join(_FORMATS)}"
        )
    return path, _FORMATS[path.suffix.lower()]


def _as_json(metadata: Metadata) -> Metadata:
    try:
        return json.loads(json.dumps(metadata))
    except TypeError as error:
        raise ValueError(
            f"metadata must be a JSON object, but: {error}; convert arrays with .tolist(), NumPy "
            "numbers with .item()"
        ) from error


def _same_system(path: Path, held: ase.Atoms, given: ase.Atoms) -> None:
    for name, a, b in (
        ("atomic numbers", held.numbers, given.numbers),
        ("masses", held.get_masses(), given.get_masses()),
        ("cell", held.cell[:], given.cell[:]),
        ("pbc", held.pbc, given.pbc),
    ):
        if not np.array_equal(a, b):
            raise ValueError(
                f"cannot append to {path}: its {name} differ from those of the atoms given "
                f"({held.get_chemical_formula()} and {given.get_chemical_formula()})"
            )


def _same_metadata(path: Path, held: Metadata, given: Metadata | None) -> None:
    if given is None:
        return
    wrong = [k for k in sorted({*held, *given}) if held.get(k) != given.get(k)]
    if wrong:
        listed = "; ".join(f"{k}: {held.get(k)!r} there, {given.get(k)!r} given" for k in wrong)
        raise ValueError(
            f"cannot append to {path}, it was written by another run: {listed}. Give the same "
            "settings, or another file name"
        )


def _foreign(path: Path, lack: str) -> ValueError:
    return ValueError(
        f"{path} was not written by this package: {lack}. Read it with ase.io.read(path, ':') and "
        "build a Trajectory(atoms, times, positions, momenta)"
    )


# Each format: a sink opened on a new file or on one cut to its complete frames; `count` complete
# frames; `read` some of them; `truncate`.


class _TrajSink:
    def __init__(self, path: Path, atoms: ase.Atoms, metadata: Metadata) -> None:
        self.atoms, self.metadata = atoms, metadata
        self.file = AseWriter(str(path), "a")

    def write(self, start: int, times: Array, positions: Array, momenta: Array) -> None:
        for k, (t, x, p) in enumerate(zip(times, positions, momenta, strict=True), start):
            frame = _frame(self.atoms, t, x, p)
            if k == 0:
                frame.info["metadata"] = self.metadata
            self.file.write(frame)

    def close(self) -> None:
        self.file.close()


def _traj_count(path: Path) -> int:
    if path.stat().st_size == 0:
        return 0
    try:
        reader = AseReader(str(path))
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{path} is not a readable ASE trajectory: {error}") from error
    with reader:
        # The index may be ahead of the data only if the file was cut (a full disk, a broken copy).
        for n in range(len(reader), 0, -1):
            try:
                reader[n - 1]
                return n
            except (OSError, ValueError, KeyError, IndexError):
                continue
    return 0


def _traj_read(
    path: Path, frames: slice
) -> tuple[ase.Atoms, list[float], list[Array], list[Array], Metadata]:
    n = _traj_count(path)
    times, positions, momenta = [], [], []
    with AseReader(str(path)) as reader:
        first = reader[0]
        for i in range(n)[frames]:
            atoms = reader[i]
            if "time_fs" not in atoms.info or not atoms.has("momenta"):
                raise _foreign(path, f"frame {i} lacks info['time_fs'] or momenta")
            times.append(atoms.info["time_fs"])
            positions.append(atoms.positions)
            momenta.append(atoms.arrays["momenta"])
    # ASE's JSON turns keys such as "8" into integers; JSON again makes them text.
    metadata = _as_json(first.info.get("metadata", {}))
    shape = (len(times), len(first), 3)
    return first, times, _stack(positions, shape), _stack(momenta, shape), metadata


def _stack(arrays: list[Array], shape: tuple[int, ...]) -> Any:
    return np.array(arrays, dtype=np.float64).reshape(shape)


def _traj_truncate(path: Path, frames: int) -> None:
    # The count of frames is the little-endian int64 at byte 32 (layout: ase.io.ulm). What lies
    # beyond stays as dead space; the index has room for the frames to come.
    if path.stat().st_size:
        with path.open("r+b") as file:
            file.seek(32)
            file.write(np.int64(frames).astype("<i8").tobytes())


_XYZ_COLUMNS = "Properties=species:S:1:pos:R:3:momenta:R:3:masses:R:1"


class _ExtxyzSink:
    def __init__(self, path: Path, atoms: ase.Atoms, metadata: Metadata) -> None:
        self.metadata = metadata
        self.header = f"{_XYZ_COLUMNS} " + 'pbc="{} {} {}"'.format(
            *("T" if on else "F" for on in atoms.pbc)
        )
        if atoms.cell.any():
            cell = " ".join(repr(float(c)) for c in atoms.cell[:].ravel())
            self.header = f'Lattice="{cell}" {self.header}'
        self.count = f"{len(atoms)}\n"
        self.body = "".join(
            f"{symbol:<2}" + 6 * " % .16e" + f" {mass!r}\n"
            for symbol, mass in zip(
                atoms.get_chemical_symbols(), atoms.get_masses().tolist(), strict=True
            )
        )
        self.file = path.open("ab")

    def write(self, start: int, times: Array, positions: Array, momenta: Array) -> None:
        for k, (t, x, p) in enumerate(zip(times, positions, momenta, strict=True), start):
            comment = f"{self.header} time_fs={float(t)!r}"
            if k == 0:
                # ASE's reader undoes one level of backslashes, then parses after "_JSON ".
                text = json.dumps(self.metadata).replace("\\", "\\\\").replace('"', '\\"')
                comment += f' metadata="_JSON {text}"'
            body = self.body % tuple(np.concatenate((x, p), axis=1).ravel().tolist())
            self.file.write(f"{self.count}{comment}\n{body}".encode())
        self.file.flush()

    def close(self) -> None:
        self.file.close()


def _extxyz_ends(path: Path) -> list[int]:
    """The byte just after each complete frame."""
    ends: list[int] = []
    place = 0
    with path.open("rb") as file:
        while (head := file.readline()).endswith(b"\n"):
            if not head.strip().isdigit():
                raise ValueError(
                    f"{path} is damaged after frame {len(ends)}: expected a number of atoms at "
                    f"byte {place}, got {head[:20]!r}"
                )
            lines = list(islice(file, int(head) + 1))
            if len(lines) < int(head) + 1 or not lines[-1].endswith(b"\n"):
                break
            place += len(head) + sum(map(len, lines))
            ends.append(place)
    return ends


def _extxyz_count(path: Path) -> int:
    return len(_extxyz_ends(path))


def _extxyz_read(
    path: Path, frames: slice
) -> tuple[ase.Atoms, list[float], Array, Array, Metadata]:
    ends = _extxyz_ends(path)
    first = ase.io.read(path, index=0, format="extxyz")
    assert isinstance(first, ase.Atoms)
    atoms = len(first)
    chosen = range(len(ends))[frames]
    times: list[float] = []
    values = np.empty((len(chosen), atoms, 6))
    with path.open("rb") as file:
        for k, i in enumerate(chosen):
            file.seek(ends[i - 1] if i else 0)
            _, comment, body = file.read(ends[i] - file.tell()).split(b"\n", 2)
            time = re.search(rb" time_fs=(\S+)", comment)
            if time is None or _XYZ_COLUMNS.encode() not in comment:
                raise _foreign(path, f"frame {i} lacks time_fs or '{_XYZ_COLUMNS}'")
            times.append(float(time[1]))
            table = np.array(body.split()).reshape(atoms, 8)
            values[k] = table[:, 1:7].astype(np.float64)
    return first, times, values[..., :3], values[..., 3:], first.info.get("metadata", {})


def _extxyz_truncate(path: Path, frames: int) -> None:
    os.truncate(path, ([0] + _extxyz_ends(path))[frames])


_H5_FORMAT = "mdtrajnet_fast trajectory"
_H5_VERSION = 1
_H5_SERIES = {
    "times": "fs", "positions": "Å", "momenta": "sqrt(eV amu)", "velocities": "Å/fs"
}  # fmt: skip
_H5_LIBVER = ("v110", "v110")  # the oldest file format that has the single-writer mode


class _H5Sink:
    def __init__(self, path: Path, atoms: ase.Atoms, metadata: Metadata) -> None:
        if not path.exists():
            _h5_create(path, atoms, metadata, (np.empty(0), *np.empty((2, 0, len(atoms), 3))))
        self.masses = atoms.get_masses()
        self.file = h5py.File(path, "r+", libver=_H5_LIBVER)
        self.file.swmr_mode = True

    def write(self, start: int, times: Array, positions: Array, momenta: Array) -> None:
        columns = {
            "positions": positions,
            "momenta": momenta,
            "velocities": velocities_from_momenta(momenta, self.masses),
            "times": times,  # last: a frame counts once its time is there
        }
        for name, values in columns.items():
            dataset = self.file[name]
            dataset.resize(start + len(times), axis=0)
            dataset[start:] = values
            dataset.flush()

    def close(self) -> None:
        self.file.close()


def _h5_create(
    path: Path, atoms: ase.Atoms, metadata: Metadata, frames: tuple[Any, Any, Any]
) -> None:
    """Write a whole file under another name, then move it in place: there is never half of it."""
    times, positions, momenta = frames
    fresh = path.with_name(path.name + ".tmp")
    with h5py.File(fresh, "w", libver=_H5_LIBVER) as file:
        file.attrs["format"] = _H5_FORMAT
        file.attrs["version"] = _H5_VERSION
        file.attrs["metadata"] = json.dumps(metadata)
        for name, value, unit in (
            ("numbers", atoms.numbers.astype(np.int64), "1"),
            ("masses", atoms.get_masses(), "amu"),
            ("cell", atoms.cell[:], "Å"),
            ("pbc", atoms.pbc, "1"),
        ):
            file.create_dataset(name, data=value).attrs["unit"] = unit
        # Chunks of about 64 KiB: each flush writes the last one again.
        per_chunk = int(np.clip(65536 // (24 * max(len(atoms), 1)), 1, 1024))
        for name, unit in _H5_SERIES.items():
            tail = () if name == "times" else (len(atoms), 3)
            file.create_dataset(
                name,
                shape=(len(times), *tail),
                maxshape=(None, *tail),
                chunks=(per_chunk, *tail),
                dtype=np.float64,
                fillvalue=np.nan,  # a time that was never written is not a number
            ).attrs["unit"] = unit
        for start in range(0, len(times), 16 * per_chunk):
            part = slice(start, min(start + 16 * per_chunk, len(times)))
            p = momenta[part]
            file["times"][part] = times[part]
            file["positions"][part] = positions[part]
            file["momenta"][part] = p
            file["velocities"][part] = velocities_from_momenta(p, atoms.get_masses())
    os.replace(fresh, path)


@contextmanager
def _h5_open(path: Path) -> Iterator[h5py.File]:
    """A trajectory to read from; what is wrong with it comes as ValueError."""
    swmr = _h5_left_open(path)
    try:
        file = h5py.File(path, "r", libver=_H5_LIBVER, swmr=swmr)
    except OSError as error:
        raise ValueError(f"{path} is not a readable HDF5 trajectory: {error}") from error
    try:
        with file:
            _h5_check(path, file)
            yield file
    except (OSError, RuntimeError, KeyError) as error:
        if isinstance(error, OSError) and error.errno:  # of another file, as on a full disk
            raise
        raise ValueError(f"{path} is damaged: {error}; restore it from a copy") from error


def _h5_check(path: Path, file: h5py.File) -> None:
    if file.attrs.get("format") != _H5_FORMAT:
        if any("frame_fs" in node.attrs for node in file.values()):
            raise ValueError(
                f"{path} is not one trajectory, but in the data format: read it with "
                "mdtrajnet_fast.data.records.load_records(path)"
            )
        raise ValueError(
            f"{path} was not written by this package: its attribute 'format' is not "
            f"'{_H5_FORMAT}'. Read it with h5py and build a "
            "Trajectory(atoms, times, positions, momenta)"
        )
    if (version := file.attrs["version"]) != _H5_VERSION:
        raise ValueError(
            f"{path} has format version {version}, this package reads {_H5_VERSION}: update it"
        )


def _h5_left_open(path: Path) -> bool:
    """Whether an HDF5 file carries the mark "open for writing".

    Only then is it to be opened in SWMR mode, in which HDF5 does not look whether the file was cut
    short but tries to read what is missing again and again. Raises ValueError if that is to fear.
    """
    with path.open("rb") as raw:
        head = raw.read(36)
    # The superblock, of version 3: the mark in byte 11, the size when it was opened in byte 28.
    marked = head[:9] == b"\x89HDF\r\n\x1a\n\x03" and len(head) == 36 and head[11] != 0
    if marked and path.stat().st_size < (size := int.from_bytes(head[28:], "little")):
        raise ValueError(
            f"{path} is damaged: it has {path.stat().st_size} bytes of at least {size}; restore it "
            "from a copy"
        )
    return marked


def _h5_complete(file: h5py.File) -> int:
    n = min(len(file[name]) for name in _H5_SERIES)
    missing = np.flatnonzero(np.isnan(file["times"][:n]))
    return int(missing[0]) if len(missing) else n


def _h5_count(path: Path) -> int:
    with _h5_open(path) as file:
        return _h5_complete(file)


def _h5_header(file: h5py.File) -> tuple[ase.Atoms, Metadata]:
    atoms = ase.Atoms(
        numbers=file["numbers"][:], masses=file["masses"][:], cell=file["cell"][:],
        pbc=file["pbc"][:],
    )  # fmt: skip
    return atoms, json.loads(file.attrs["metadata"])


def _h5_read(path: Path, frames: slice) -> tuple[ase.Atoms, Array, Array, Array, Metadata]:
    with _h5_open(path) as file:
        atoms, metadata = _h5_header(file)
        start, stop, step = frames.indices(_h5_complete(file))
        # HDF5 reads forward only; NumPy does the rest.
        low, high = (start, max(start, stop)) if step > 0 else (max(stop + 1, 0), start + 1)
        order = slice(None, None, step)
        times, x, p = (file[k][low:high][order] for k in ("times", "positions", "momenta"))
        return atoms, times, x, p, metadata


def _h5_truncate(path: Path, frames: int) -> None:
    left_open = _h5_left_open(path)
    with _h5_open(path) as file:
        if not left_open and all(len(file[name]) == frames for name in _H5_SERIES):
            return
        atoms, metadata = _h5_header(file)
        columns = file["times"][:frames], file["positions"], file["momenta"]
        _h5_create(path, atoms, metadata, columns)


class _Format(NamedTuple):
    sink: Callable[[Path, ase.Atoms, Metadata], Any]
    count: Callable[[Path], int]
    read: Callable[[Path, slice], tuple[Any, Any, Any, Any, Metadata]]
    truncate: Callable[[Path, int], None]


_FORMATS = {
    ".traj": _Format(_TrajSink, _traj_count, _traj_read, _traj_truncate),
    ".extxyz": _Format(_ExtxyzSink, _extxyz_count, _extxyz_read, _extxyz_truncate),
    **dict.fromkeys((".h5", ".hdf5"), _Format(_H5Sink, _h5_count, _h5_read, _h5_truncate)),
}
