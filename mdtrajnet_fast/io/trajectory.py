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
        arrays/...  [atoms, ...]                what else the atoms have, such as tags
        attributes of the file: format, version, metadata (JSON), info (ASE's JSON)

The run's metadata (any JSON object) is stored once: in ``info["metadata"]`` of frame 0, which
``ase.io.read`` returns, or in the HDF5 attribute. Masses, thus isotopes, are in every format, and
so is what describes the atoms whatever they do (:func:`described`): tags, initial charges and
magnetic moments, residue names and other arrays, and ``info``.

What survives
-------------
Each ``write`` call is handed to the operating system before it returns. A killed process, or a
disk that is full, loses at most the frames of the call it was in; earlier frames stay readable,
and the file can be continued, in all three formats:

* ``.traj``: ASE writes the data of a frame, then its place in the index, then the number of frames.
* ``.extxyz``: a frame counts when all its lines are there; a torn last frame is left out.
* ``.h5``: a call is a commit of :mod:`.hdf5_files`, whole or not at all; other programs can read
  the file during the run (``h5py.File(path, swmr=True)``) and after a kill. One within a commit,
  a matter of microseconds, leaves a ``.journal`` beside the file that belongs to it.

A file has one writer at a time (:class:`.lock.Lock`). Writers share a quarter of the descriptors
that a process may have; those of more files than that open them for each write.
"""

from __future__ import annotations

import json
import os
import re
import resource
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, TypeVar, overload

import ase
import ase.io
import h5py
import numpy as np
from ase.calculators.calculator import all_properties
from ase.io.jsonio import decode, encode
from ase.io.trajectory import TrajectoryReader as AseReader
from ase.io.trajectory import TrajectoryWriter as AseWriter
from numpy.typing import ArrayLike, NDArray

from ..mechanics import velocities_from_momenta
from . import hdf5_files
from .interruptions import uninterrupted
from .lock import Lock

if TYPE_CHECKING:
    from ..analysis.summary import TrustSummary

Array = NDArray[np.float64]
Metadata = dict[str, Any]
_T = TypeVar("_T")


# ------------------------------------------------------------------------------- in memory


class Trajectory:
    """Frames of one system.

    Arguments
        atoms: numbers, masses, cell and pbc are taken from it, and what else describes it
            (:func:`described`): tags, info and the like, which all frames have.
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
        with _damage_named(path):
            if fmt.count(path) == 0:
                raise ValueError(
                    f"{path} holds no complete frame (the run ended before its first write); "
                    "remove it, or begin it again with open_writer(path, atoms, append=True)"
                )
            trajectory = cls(*fmt.read(path, frames))
        steps = np.diff(trajectory.times) * (frames.step or 1)
        whole = np.isfinite(trajectory.positions) & np.isfinite(trajectory.momenta)
        if not (np.isfinite(trajectory.times).all() and (steps > 0).all() and whole.all()):
            raise ValueError(
                f"{path} is damaged: its times do not increase, or positions or momenta are not "
                "finite; restore it from a copy"
            )
        return trajectory


# Of one moment: positions and momenta are kept elsewhere, the rest would be wrong in other frames.
_OF_A_STATE = frozenset(
    ("numbers", "positions", "momenta", "masses", "metadata", "time", "time_fs", *all_properties)
)


def described(atoms: ase.Atoms) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Copies of what describes atoms whatever they do: entries of info, and arrays [atoms, ...].

    Left out are times, results of calculators, and vectors of float [atoms, 3] such as forces.
    """
    copy = atoms.copy()
    info = {k: v for k, v in copy.info.items() if k not in _OF_A_STATE}
    arrays = {
        k: v.astype(str) if v.dtype == object and all(isinstance(x, str) for x in v.flat) else v
        for k, v in copy.arrays.items()
        if k not in _OF_A_STATE and not (v.dtype.kind == "f" and v.shape[1:] == (3,))
    }
    return info, arrays


def description(atoms: ase.Atoms) -> dict[str, Any]:
    """What :func:`described` finds as a JSON object; what JSON cannot hold is left out."""
    info, arrays = described(atoms)
    kept = {"info": info, "arrays": {k: _plain(v) for k, v in arrays.items()}}
    texts = {name: _as_text(Path("JSON"), entries) for name, entries in kept.items()}
    return {k: {name: json.loads(text) for name, text in v.items()} for k, v in texts.items()}


def set_description(atoms: ase.Atoms, said: dict[str, Any]) -> None:
    """Give atoms what :func:`description` said. Raises ValueError, TypeError for anything else."""
    kept = decode(json.dumps(said), always_array=False)
    atoms.info.update(kept.get("info", {}))
    for name, values in kept.get("arrays", {}).items():
        atoms.set_array(name, np.asarray(values))


def _plain(values: np.ndarray) -> Any:
    """ASE's JSON has no arrays of texts: a list of them."""
    return values.tolist() if values.dtype.kind == "U" else values


def _template(atoms: ase.Atoms) -> ase.Atoms:
    template = ase.Atoms(
        numbers=atoms.numbers, masses=atoms.get_masses(), cell=atoms.cell, pbc=atoms.pbc
    )
    template.info, arrays = described(atoms)
    template.arrays.update(arrays)
    return template


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
    lock = Lock(path)
    try:
        frames, last = 0, -np.inf
        if path.exists():
            if not append:
                raise FileExistsError(
                    f"{path} exists and is never overwritten: choose another name, remove it, or "
                    "continue it with append=True"
                )
            frames = count_frames(path)
        with _damage_named(path):
            if frames:
                end = Trajectory.read(path, slice(frames - 1, frames))
                _same_system(path, end.atoms, atoms)
                _same_metadata(path, end.metadata, metadata)
                atoms, last = end.atoms, float(end.times[0])
                fmt.truncate(path, frames)
            else:
                path.unlink(missing_ok=True)  # append to a file without a frame: begin it again
            return TrajectoryWriter(path, atoms, metadata or {}, lock, frames, last)
    except BaseException:
        lock.close()
        raise


class TrajectoryWriter:
    """What :func:`open_writer` returns. ``frames`` counts the frames in the file."""

    def __init__(
        self,
        path: Path,
        atoms: ase.Atoms,
        metadata: Metadata,
        lock: Lock,
        frames: int,
        last_time: float,
    ) -> None:
        self._path, self._system, self._metadata = path, atoms, metadata
        self._lock: Lock | None = lock
        self.frames, self._last = frames, last_time
        self._state: tuple[int, int] | None = None  # of the file, while it is closed
        self._sink: Any = None
        try:
            self._open()
        except BaseException as error:
            self._give_up(error)

    def write(self, times: ArrayLike, positions: ArrayLike, momenta: ArrayLike) -> None:
        """Append frames and hand them to the operating system: times [k] fs, positions
        [k, atoms, 3] Å, momenta [k, atoms, 3] sqrt(eV amu).

        Raises ValueError for wrong shapes or times that are not finite and increasing: a restart
        cannot write a frame twice. Raises OSError where the file cannot be written (a full disk) or
        another process changed it; the writer is closed then, and what the file had is in it.
        """
        t, x, p = frame_arrays(len(self._system), times, positions, momenta)
        if len(t) == 0:
            return
        steps = np.diff(t, prepend=self._last)
        if not (np.all(np.isfinite(t)) and np.all(steps > 0)):
            raise ValueError(
                f"got frame times {t[0]:g} ... {t[-1]:g} fs after {self._last:g} fs; expected "
                "finite, increasing times (on a restart, truncate() drops the frames written "
                "after the state it continues from)"
            )
        with uninterrupted():
            try:
                if self._sink is None:
                    self._open()
                self._sink.write(self.frames, t, x, p)
            except BaseException as error:
                self._give_up(error)
            self.frames += len(t)
            self._last = float(t[-1])

    def close(self) -> None:
        """Close the file; all that was written is in it already."""
        with uninterrupted():
            self._rest()

    def _open(self) -> None:
        """Open the file, in place of another one where too many are."""
        if self._lock is None:
            self._lock = Lock(self._path)
        if self._state is not None and self._state != _state(self._path):
            raise OSError(f"{self._path} was changed by another program since it was last written")
        while len(_opened) >= max(1, _descriptors() // 4):
            next(iter(_opened))._rest()
        sink = _FORMATS[self._path.suffix.lower()].sink
        self._sink = sink(self._path, self._system, self._metadata)
        _opened[self] = None

    def _rest(self) -> None:
        """Close the file until there is more to write."""
        _opened.pop(self, None)
        if self._sink is not None:
            sink, self._sink = self._sink, None
            sink.close()
            self._state = _state(self._path)
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _give_up(self, error: BaseException) -> NoReturn:
        """Close what a write was broken in, with the frames before it."""
        if self._sink is not None:
            self._sink.abandon(self.frames)
            self._sink = None
        self._rest()
        if isinstance(error, OSError) and error.errno is not None:
            raise OSError(
                error.errno,
                f"{error.strerror}: the {self.frames} frames before this are complete; the run can "
                "be continued from them",
                str(self._path),
            ) from error
        raise error

    def __enter__(self) -> TrajectoryWriter:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


_opened: dict[TrajectoryWriter, None] = {}  # writers whose files are open, the oldest first


def _descriptors() -> int:
    """How many files this process may have open at once."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1_000_000 if soft == resource.RLIM_INFINITY else soft


def _state(path: Path) -> tuple[int, int]:
    """What tells whether somebody else has changed a file: size and time of the last change."""
    found = path.stat()
    return found.st_size, found.st_mtime_ns


# What ASE and HDF5 raise for damaged files.
_DAMAGE = (
    OSError,
    ValueError,
    LookupError,
    AttributeError,
    TypeError,
    ArithmeticError,
    AssertionError,
    MemoryError,
    RuntimeError,
)


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """What goes wrong in reading a file comes as a ValueError that names it."""
    try:
        yield
    except _DAMAGE as error:
        if str(path) in str(error) or (isinstance(error, OSError) and error.errno):
            raise  # it says it already, or is not of the content
        said = f"{type(error).__name__}: {error}"
        raise ValueError(f"{path} is damaged ({said}); restore it from a copy") from error


def count_frames(path: str | Path) -> int:
    """The number of complete frames in a trajectory file; an unfinished last one is not counted.

    Raises FileNotFoundError, and ValueError for an unknown suffix or a file that is damaged or of
    another origin.
    """
    path, fmt = _known(path)
    if not path.exists():
        raise FileNotFoundError(f"no trajectory file {path}")
    with _damage_named(path):
        return fmt.count(path)


def last_time(path: str | Path) -> float:
    """The time (fs) of the last complete frame of a file; minus infinity where there is none.

    Raises ValueError as :func:`count_frames`.
    """
    if not Path(path).exists() or (frames := count_frames(path)) == 0:
        return -np.inf
    return float(Trajectory.read(path, slice(frames - 1, frames)).times[0])


def truncate(path: str | Path, frames: int) -> None:
    """Keep the first ``frames`` frames of a trajectory file and drop the rest.

    A kill at any moment leaves either the old file or the new one, and so does a full disk.
    Dropping frames of a .h5 file rewrites what is kept; the other two are cut in place.

    Raises ValueError if the file has fewer complete frames, BlockingIOError while another process
    writes it; otherwise as :func:`count_frames`.
    """
    path, fmt = _known(path)
    held = count_frames(path)
    if not 0 <= frames <= held:
        raise ValueError(f"cannot keep {frames} frames of {path}: it holds {held} complete ones")
    with Lock(path), _damage_named(path):
        fmt.truncate(path, frames)


def is_hdf5_trajectory(path: str | Path) -> bool:
    """Whether a file is a .h5 trajectory of this package, and not, say, training data."""
    try:
        with hdf5_files.reading(Path(path)) as file:
            return file.attrs.get("format") == _H5_FORMAT
    except _DAMAGE:  # no HDF5 file, or damaged
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


def _as_text(path: Path, info: dict[str, Any]) -> dict[str, str]:
    """Entries of info in ASE's JSON; what that cannot hold stays out of files, with a warning."""
    texts = {}
    for key, value in info.items():
        try:
            if not isinstance(key, str):
                raise TypeError("its name is not a text")
            texts[key] = encode(value)
        except (TypeError, ValueError) as error:
            _stays_out(path, f"info[{key!r}]", str(error))
    return texts


def _stays_out(path: Path, what: str, why: str) -> None:
    warnings.warn(f"{path.name} cannot hold {what} of the atoms: {why}", stacklevel=2)


# Each format: a sink opened on a new file or on one cut to its complete frames, which `abandon`
# closes after a write that failed; `count` complete frames; `read` some of them; `truncate`.


class _TrajSink:
    # Arrays that ASE does not write are in info["more_arrays"] of frame 0.
    _HELD = frozenset(("tags", "initial_charges", "initial_magmoms"))

    def __init__(self, path: Path, atoms: ase.Atoms, metadata: Metadata) -> None:
        self.path, self.atoms, self.metadata = path, atoms.copy(), metadata
        held = _as_text(path, atoms.info)
        self.atoms.info = {k: v for k, v in atoms.info.items() if k in held}
        _, arrays = described(atoms)
        self.more = {k: _plain(v) for k, v in arrays.items() if k not in self._HELD}
        self.file = AseWriter(str(path), "a")

    def write(self, start: int, times: Array, positions: Array, momenta: Array) -> None:
        for k, (t, x, p) in enumerate(zip(times, positions, momenta, strict=True), start):
            frame = _frame(self.atoms, t, x, p)
            if k == 0:
                frame.info["metadata"] = self.metadata
                if self.more:
                    frame.info["more_arrays"] = self.more
            self.file.write(frame)

    def close(self) -> None:
        self.file.close()

    def abandon(self, frames: int) -> None:
        with suppress(OSError):  # again that of the write
            self.file.backend.fd.close()  # ASE's close would count what is half written
        _traj_truncate(self.path, frames)


def _traj_count(path: Path) -> int:
    if path.stat().st_size == 0:
        return 0
    try:
        reader = AseReader(str(path))
    except _DAMAGE as error:
        if path.stat().st_size < 56:  # killed before the header was whole
            return 0
        raise ValueError(f"{path} is not a readable ASE trajectory: {error}") from error
    with reader:
        # The index may be ahead of the data only if the file was cut (a full disk, a broken copy).
        for n in range(len(reader), 0, -1):
            try:
                frame = reader[n - 1]
            except _DAMAGE:
                continue
            if n < len(reader) or n == 1 or (frame.has("momenta") and "time_fs" in frame.info):
                return n
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
    for name, values in first.info.pop("more_arrays", {}).items():
        first.set_array(name, np.asarray(values))
    shape = (len(times), len(first), 3)
    return first, times, _stack(positions, shape), _stack(momenta, shape), metadata


def _stack(arrays: list[Array], shape: tuple[int, ...]) -> Any:
    return np.array(arrays, dtype=np.float64).reshape(shape)


def _traj_truncate(path: Path, frames: int) -> None:
    # The count of frames is the little-endian int64 at byte 32 (layout: ase.io.ulm). What lies
    # beyond stays as dead space; the index has room for the frames to come.
    if frames == 0:
        os.truncate(path, 0)
    else:
        with path.open("r+b") as file:
            file.seek(32)
            file.write(np.int64(frames).astype("<i8").tobytes())


_XYZ_COLUMNS = "Properties=species:S:1:pos:R:3:momenta:R:3:masses:R:1"
_XYZ_KINDS = {"i": "I", "u": "I", "f": "R", "b": "L", "U": "S"}
_XYZ_NAME = re.compile(r"[A-Za-z_]\w*")


class _ExtxyzSink:
    def __init__(self, path: Path, atoms: ase.Atoms, metadata: Metadata) -> None:
        self.path, self.metadata = path, metadata
        info, arrays = described(atoms)
        columns, cells = _XYZ_COLUMNS, [[repr(mass)] for mass in atoms.get_masses().tolist()]
        for name, values in arrays.items():
            table = values.reshape(len(atoms), -1) if values.ndim < 3 else None
            texts = [] if table is None else [[*map(_xyz_cell, row)] for row in table.tolist()]
            if (
                table is None
                or values.dtype.kind not in _XYZ_KINDS
                or not _XYZ_NAME.fullmatch(name)
                or any(len(cell.split()) != 1 for row in texts for cell in row)
            ):
                _stays_out(path, f"the array {name!r}", "it does not fit columns of text")
                continue
            columns += f":{name}:{_XYZ_KINDS[values.dtype.kind]}:{table.shape[1]}"
            cells = [[*row, *more] for row, more in zip(cells, texts, strict=True)]
        self.header = f"{columns} " + 'pbc="{} {} {}"'.format(
            *("T" if on else "F" for on in atoms.pbc)
        )
        if atoms.cell.any():
            cell = " ".join(repr(float(c)) for c in atoms.cell[:].ravel())
            self.header = f'Lattice="{cell}" {self.header}'
        for key, text in _as_text(path, info).items():
            if _XYZ_NAME.fullmatch(key):
                self.header += f" {key}={_xyz_json(text)}"
            else:
                _stays_out(path, f"info[{key!r}]", "its name is not one word")
        self.count = f"{len(atoms)}\n"
        self.body = "".join(
            f"{symbol:<2}" + 6 * " % .16e" + " " + " ".join(row).replace("%", "%%") + "\n"
            for symbol, row in zip(atoms.get_chemical_symbols(), cells, strict=True)
        )
        self.file = path.open("ab")

    def write(self, start: int, times: Array, positions: Array, momenta: Array) -> None:
        for k, (t, x, p) in enumerate(zip(times, positions, momenta, strict=True), start):
            comment = f"{self.header} time_fs={float(t)!r}"
            if k == 0:
                comment += f" metadata={_xyz_json(json.dumps(self.metadata))}"
            body = self.body % tuple(np.concatenate((x, p), axis=1).ravel().tolist())
            self.file.write(f"{self.count}{comment}\n{body}".encode())
        self.file.flush()

    def close(self) -> None:
        self.file.close()

    def abandon(self, frames: int) -> None:
        with suppress(OSError):  # again that of the write
            self.file.close()
        _extxyz_truncate(self.path, frames)


def _xyz_cell(value: Any) -> str:
    return ("F", "T")[value] if isinstance(value, bool) else str(value)


def _xyz_json(text: str) -> str:
    # ASE's reader undoes one level of backslashes, then parses after "_JSON ".
    text = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"_JSON {text}"'


def _extxyz_ends(path: Path) -> list[int]:
    """The byte just after each complete frame."""
    ends: list[int] = []
    place = 0
    with path.open("rb") as file:
        while (head := file.readline()).endswith(b"\n"):
            if not head.strip().isdigit() or len(head) > 12:
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
            table = np.array(body.split()).reshape(atoms, -1)
            values[k] = table[:, 1:7].astype(np.float64)
    for key in described(first)[0]:
        first.info[key] = decode(json.dumps(first.info[key]), always_array=False)
    return first, times, values[..., :3], values[..., 3:], first.info.get("metadata", {})


def _extxyz_truncate(path: Path, frames: int) -> None:
    os.truncate(path, ([0] + _extxyz_ends(path))[frames])


_H5_FORMAT = "mdtrajnet_fast trajectory"
_H5_VERSION = 1
_H5_SERIES = {
    "times": "fs", "positions": "Å", "momenta": "sqrt(eV amu)", "velocities": "Å/fs"
}  # fmt: skip


class _H5Sink:
    def __init__(self, path: Path, atoms: ase.Atoms, metadata: Metadata) -> None:
        if not path.exists():
            _h5_create(path, atoms, metadata, (np.empty(0), *np.empty((2, 0, len(atoms), 3))))
        self.masses = atoms.get_masses()
        self.file = hdf5_files.Hdf5File(path)

    def write(self, start: int, times: Array, positions: Array, momenta: Array) -> None:
        _h5_append(self.file.file, start, times, positions, momenta, self.masses)
        self.file.commit()

    def close(self) -> None:
        self.file.close()

    def abandon(self, frames: int) -> None:
        self.file.close(commit=False)


def _h5_append(
    file: h5py.File, start: int, times: Array, positions: Array, momenta: Array, masses: Array
) -> None:
    columns = {
        "times": times,
        "positions": positions,
        "momenta": momenta,
        "velocities": velocities_from_momenta(momenta, masses),
    }
    for name, values in columns.items():
        file[name].resize(start + len(times), axis=0)
        file[name][start:] = values


def _h5_create(
    path: Path, atoms: ase.Atoms, metadata: Metadata, frames: tuple[Any, Any, Any]
) -> None:
    """Write a whole file in place of one that there may be."""
    times, positions, momenta = frames
    # Chunks of about 16 KiB: each write goes through the last one again.
    per_chunk = int(np.clip(16384 // (24 * max(len(atoms), 1)), 1, 1024))

    def fill(made: hdf5_files.Hdf5File) -> None:
        file = made.file
        file.attrs["format"] = _H5_FORMAT
        file.attrs["version"] = _H5_VERSION
        file.attrs["metadata"] = json.dumps(metadata)
        info, arrays = described(atoms)
        texts = _as_text(path, info)
        file.attrs["info"] = encode({k: v for k, v in info.items() if k in texts})
        for name, values in arrays.items():
            try:
                text = values.dtype.kind == "U"
                kind = h5py.string_dtype() if text else None
                file.create_dataset(
                    f"arrays/{name}", data=values.tolist() if text else values, dtype=kind
                )
            except (TypeError, ValueError) as error:
                _stays_out(path, f"the array {name!r}", str(error))
        for name, value, unit in (
            ("numbers", atoms.numbers.astype(np.int64), "1"),
            ("masses", atoms.get_masses(), "amu"),
            ("cell", atoms.cell[:], "Å"),
            ("pbc", atoms.pbc, "1"),
        ):
            file.create_dataset(name, data=value).attrs["unit"] = unit
        for name, unit in _H5_SERIES.items():
            tail = () if name == "times" else (len(atoms), 3)
            file.create_dataset(
                name,
                shape=(0, *tail),
                maxshape=(None, *tail),
                chunks=(per_chunk, *tail),
                dtype=np.float64,
                fillvalue=np.nan,  # a time that was never written is not a number
            ).attrs["unit"] = unit
        for start in range(0, len(times), 16 * per_chunk):
            part = slice(start, min(start + 16 * per_chunk, len(times)))
            x, p = positions[part], momenta[part]
            _h5_append(file, start, times[part], x, p, atoms.get_masses())
            made.commit()

    hdf5_files.make(path, fill)


@contextmanager
def _h5_open(path: Path) -> Iterator[h5py.File]:
    """A trajectory to read from; what is wrong with it comes as ValueError."""
    try:
        with hdf5_files.reading(path) as file:
            _h5_check(path, file)
            yield file
    except OSError as error:
        if error.errno:  # of another file, as on a full disk
            raise
        raise ValueError(
            f"{path} is damaged, or not a readable HDF5 trajectory: {error}; restore it from a copy"
        ) from error


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


def _h5_complete(file: h5py.File) -> int:
    n = min(len(file[name]) for name in _H5_SERIES)
    missing = np.flatnonzero(np.isnan(file["times"][:n]))
    return int(missing[0]) if len(missing) else n


def _whole(read: Callable[..., _T]) -> Callable[..., _T]:
    """Read again what a writer changed in the meantime."""

    @wraps(read)
    def again(path: Path, *arguments: Any) -> _T:
        while True:
            before = _state(path)
            try:
                return read(path, *arguments)
            except _DAMAGE:
                if _state(path) == before:
                    raise

    return again


@_whole
def _h5_count(path: Path) -> int:
    with _h5_open(path) as file:
        return _h5_complete(file)


def _h5_header(file: h5py.File) -> tuple[ase.Atoms, Metadata]:
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
    with _h5_open(path) as file:
        if all(len(file[name]) == frames for name in _H5_SERIES):
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
