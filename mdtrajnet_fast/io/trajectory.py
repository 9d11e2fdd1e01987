"""Trajectories: in memory (:class:`Trajectory`) and streamed to disk (:func:`open_writer`).

The state of a run is what ``ase.Atoms`` stores: positions in Å and momenta in ASE units,
sqrt(eV amu), both float64; beside it, in eV, the potential energy where the model that made it has
one, and the heat of a thermostat. Every format here holds these numbers to the last bit, so a run
that is read back continues exactly as it would have without the stop. Velocities in Å/fs are
derived from the momenta by :func:`velocities_from_momenta`, everywhere.

Formats, chosen by suffix
-------------------------
``.traj``
    ASE's own binary format (:mod:`.traj_format`).
``.extxyz``
    Text with 17 significant digits (:mod:`.extxyz_format`).
``.h5`` (or ``.hdf5``, ``.h5md``)
    HDF5, H5MD 1.1 (:mod:`.hdf5_format`).

The run's metadata (any JSON object) is stored once: in ``info["metadata"]`` of frame 0, which
``ase.io.read`` returns, or in the HDF5 attribute. Masses, thus isotopes, are in every format, and
so is what describes the atoms whatever they do (:func:`described`): tags, initial charges and
magnetic moments, residue names and other arrays, and ``info``.

What survives
-------------
Each ``write`` call is handed to the operating system before it returns. A killed process, or a
disk that is full, loses at most the frames of the call it was in; earlier frames stay readable,
and the file can be continued, in all three formats.

A file has one writer at a time (:class:`.lock.Lock`). Writers share a quarter of the descriptors
that a process may have; those of more files than that open them for each write.
"""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, overload

import ase
import numpy as np
from numpy.typing import ArrayLike

from ..mechanics import momenta_from_velocities, velocities_from_momenta
from . import exchange, extxyz_format, hdf5_format, traj_format
from .descriptions import described, description, frame_atoms, set_description, template
from .formats import DAMAGE, SCALARS, Array, Format, Metadata, Scalars, as_json, file_state
from .hdf5_format import is_hdf5_trajectory
from .interruptions import uninterrupted
from .lock import Lock

if TYPE_CHECKING:
    from ..analysis.summary import TrustSummary

__all__ = [
    "Trajectory",
    "TrajectoryWriter",
    "count_frames",
    "described",
    "description",
    "frame_arrays",
    "is_hdf5_trajectory",
    "last_time",
    "momenta_from_velocities",
    "open_writer",
    "set_description",
    "truncate",
]


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
        potential_energies: [frames] eV, of what moved the atoms; None: not known.
        heat: [frames] eV, what a thermostat has put in by then, since the first frame of the run
            (:attr:`.thermostats.Baths.heat`); None: not known, or no thermostat.

    Attributes: those, as float64 arrays, with ``velocities`` [frames, atoms, 3] in Å/fs,
    ``kinetic_energies``, ``total_energies`` and ``conserved_energies`` [frames] in eV, and
    ``trust``, the :class:`~mdtrajnet_fast.TrustSummary` of the run that made it, or None.

    ``trajectory[i]`` is an ``ase.Atoms`` with momenta, ``info["time_fs"]`` and, where they are
    known, ``get_potential_energy()`` and ``info["heat_eV"]``; a slice is a Trajectory; iteration
    goes over the ``ase.Atoms``.

    Raises ValueError if the shapes do not match each other.
    """

    def __init__(
        self,
        atoms: ase.Atoms,
        times: ArrayLike,
        positions: ArrayLike,
        momenta: ArrayLike,
        metadata: Metadata | None = None,
        potential_energies: ArrayLike | None = None,
        heat: ArrayLike | None = None,
    ) -> None:
        self.atoms = template(atoms)
        self.times, self.positions, self.momenta, scalars = frame_arrays(
            len(atoms), times, positions, momenta, potential_energies=potential_energies, heat=heat
        )
        self.potential_energies, self.heat = map(scalars.get, SCALARS)
        self.metadata: Metadata = dict(metadata or {})
        self.trust: TrustSummary | None = None

    @property
    def velocities(self) -> Array:
        """[frames, atoms, 3] Å/fs, from the momenta by :func:`velocities_from_momenta`."""
        return velocities_from_momenta(self.momenta, self.atoms.get_masses())

    @property
    def kinetic_energies(self) -> Array:
        """[frames] eV, of all of the momenta, as ``ase.Atoms.get_kinetic_energy`` has it."""
        masses = self.atoms.get_masses()[:, None]
        return 0.5 * np.sum(self.momenta**2 / masses, axis=(1, 2))

    @property
    def total_energies(self) -> Array | None:
        """[frames] eV, potential and kinetic; None where the potential energies are not known."""
        if self.potential_energies is None:
            return None
        return self.potential_energies + self.kinetic_energies

    @property
    def conserved_energies(self) -> Array | None:
        """[frames] eV, what exact dynamics would conserve: the total energies, of a run with a
        thermostat less its heat (the effective energy of G. Bussi, M. Parrinello, Phys. Rev. E 75,
        056707 (2007)).

        None where the potential energies are not known, or the heat of a run whose metadata name a
        thermostat.
        """
        if self.heat is None:
            return None if "thermostat" in self.metadata else self.total_energies
        return None if self.total_energies is None else self.total_energies - self.heat

    @property
    def scalars(self) -> Scalars:
        """What is known of potential_energies and heat, each [frames] eV, by these names."""
        return {name: known for name in SCALARS if (known := getattr(self, name)) is not None}

    def __len__(self) -> int:
        return len(self.times)

    @overload
    def __getitem__(self, index: slice) -> Trajectory: ...
    @overload
    def __getitem__(self, index: int) -> ase.Atoms: ...
    def __getitem__(self, index: int | slice) -> ase.Atoms | Trajectory:
        x, p = self.positions[index], self.momenta[index]
        if isinstance(index, slice):
            scalars = {name: known[index] for name, known in self.scalars.items()}
            return Trajectory(self.atoms, self.times[index], x, p, self.metadata, **scalars)
        each = {name: float(known[index]) for name, known in self.scalars.items()}
        return frame_atoms(self.atoms, float(self.times[index]), x, p, each)

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

        .traj, .extxyz and .h5 hold all there is, to the bit. .dcd, .xtc, .trr and .xyz are for
        other programs and hold less (:mod:`.exchange`); beside the first three of them a .pdb of
        the same name tells the atoms.

        Raises ValueError if there are no frames; other errors as :func:`open_writer` and
        :func:`.exchange.write`.
        """
        if len(self) == 0:
            raise ValueError(f"this trajectory has no frames to write to {path}")
        if Path(path).suffix.lower() in exchange.SUFFIXES:
            exchange.write(self, Path(path))
            return
        with open_writer(path, self.atoms, metadata=self.metadata) as writer:
            writer.write(self.times, self.positions, self.momenta, **self.scalars)

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
            atoms, times, positions, momenta, metadata, scalars = fmt.read(path, frames)
            trajectory = cls(atoms, times, positions, momenta, metadata, **scalars)
        steps = np.diff(trajectory.times) * (frames.step or 1)
        columns = [trajectory.times, trajectory.positions, trajectory.momenta, *scalars.values()]
        if not ((steps > 0).all() and all(np.isfinite(column).all() for column in columns)):
            raise ValueError(
                f"{path} is damaged: its times do not increase, or positions, momenta, energies or "
                "heat are not finite; restore it from a copy"
            )
        return trajectory


def frame_arrays(
    atoms: int,
    times: ArrayLike,
    positions: ArrayLike,
    momenta: ArrayLike,
    **scalars: ArrayLike | None,
) -> tuple[Array, Array, Array, Scalars]:
    """Times, positions, momenta, known scalars as float64; ValueError for shapes that do not match.

    scalars: by name, each [frames]; None: not known.
    """
    t, x, p = (np.asarray(a, dtype=np.float64) for a in (times, positions, momenta))
    if t.ndim != 1 or x.shape != (len(t), atoms, 3) or p.shape != x.shape:
        raise ValueError(
            f"got times {t.shape}, positions {x.shape} and momenta {p.shape} for {atoms} atoms; "
            f"expected [frames], [frames, {atoms}, 3] and [frames, {atoms}, 3]"
        )
    known = {k: np.asarray(v, dtype=np.float64) for k, v in scalars.items() if v is not None}
    for name, values in known.items():
        if values.shape != t.shape:
            raise ValueError(
                f"got {name.replace('_', ' ')} {values.shape} for {len(t)} frames; expected "
                f"[{len(t)}] {SCALARS[name]}, one for each"
            )
    return t, x, p, known


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
    metadata = None if metadata is None else as_json(metadata)
    atoms = template(atoms)
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"cannot write {path.name}: there is no folder {path.parent}; make it first"
        )
    lock = Lock(path)
    try:
        frames, last, scalars = 0, -np.inf, None
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
                scalars = frozenset(end.scalars)
                _same_system(path, end.atoms, atoms)
                _same_metadata(path, end.metadata, metadata)
                atoms, last = end.atoms, float(end.times[0])
                fmt.truncate(path, frames)
            else:
                path.unlink(missing_ok=True)  # append to a file without a frame: begin it again
            return TrajectoryWriter(path, atoms, metadata or {}, lock, frames, last, scalars)
    except BaseException:
        lock.close()
        raise


class TrajectoryWriter:
    """What :func:`open_writer` returns. ``frames`` counts the frames in the file.

    The first frames of a file decide whether it has potential energies and heat.
    """

    def __init__(
        self,
        path: Path,
        atoms: ase.Atoms,
        metadata: Metadata,
        lock: Lock,
        frames: int,
        last_time: float,
        scalars: frozenset[str] | None,
    ) -> None:
        self._path, self._system, self._metadata = path, atoms, metadata
        self._lock: Lock | None = lock
        self.frames, self._last = frames, last_time
        self._scalars = scalars  # what each frame of the file has; None: the first will tell
        self._state: tuple[int, int] | None = None  # of the file, while it is closed
        self._sink: Any = None
        try:
            self._open()
        except BaseException as error:
            self._give_up(error)

    def write(
        self,
        times: ArrayLike,
        positions: ArrayLike,
        momenta: ArrayLike,
        potential_energies: ArrayLike | None = None,
        heat: ArrayLike | None = None,
    ) -> None:
        """Append frames and hand them to the operating system: times [k] fs, positions
        [k, atoms, 3] Å, momenta [k, atoms, 3] sqrt(eV amu), potential energies and heat [k] eV, if
        known.

        What the first frames of the file have not is left out: energies, heat of a file of an older
        version or of a model without energies.

        Raises ValueError for wrong shapes, for times that are not finite and increasing (a restart
        cannot write a frame twice), and where the file has energies or heat and these frames have
        none. Raises OSError where the file cannot be written (a full disk) or another process
        changed it; the writer is closed then, and what the file had is in it.
        """
        t, x, p, scalars = frame_arrays(
            len(self._system),
            times,
            positions,
            momenta,
            potential_energies=potential_energies,
            heat=heat,
        )
        if len(t) == 0:
            return
        steps = np.diff(t, prepend=self._last)
        if not (np.all(np.isfinite(t)) and np.all(steps > 0)):
            raise ValueError(
                f"got frame times {t[0]:g} ... {t[-1]:g} fs after {self._last:g} fs; expected "
                "finite, increasing times (on a restart, truncate() drops the frames written "
                "after the state it continues from)"
            )
        if self._scalars is None:
            self._scalars = frozenset(scalars)
        if missing := self._scalars - set(scalars):
            name = min(missing)
            raise ValueError(
                f"{self._path} has the {name.replace('_', ' ')} of every frame, got frames "
                f"without: give write() their {name} ({SCALARS[name]}), or begin another file"
            )
        scalars = {name: values for name, values in scalars.items() if name in self._scalars}
        with uninterrupted():
            try:
                if self._sink is None:
                    self._open()
                self._sink.write(self.frames, t, x, p, scalars)
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
        if self._state is not None and self._state != file_state(self._path):
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
            self._state = file_state(self._path)
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


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """What goes wrong in reading a file comes as a ValueError that names it."""
    try:
        yield
    except DAMAGE as error:
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


def _known(path: str | Path) -> tuple[Path, Format]:
    path = Path(path)
    if path.is_symlink():
        path = path.resolve()  # files that are rewritten replace what the link leads to
    if path.suffix.lower() not in _FORMATS:
        raise ValueError(
            f"cannot tell the trajectory format of '{path}': the name must end in "
            f"{', '.join(_FORMATS)}"
        )
    return path, _FORMATS[path.suffix.lower()]


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


_FORMATS: dict[str, Format] = {
    ".traj": traj_format.FORMAT,
    ".extxyz": extxyz_format.FORMAT,
    ".h5": hdf5_format.FORMAT,
    ".hdf5": hdf5_format.FORMAT,
    ".h5md": hdf5_format.FORMAT,
}
