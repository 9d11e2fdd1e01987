"""Trajectories on disk: read them for training, write them from MD generation.

The HDF5 format has a group for each molecule or periodic system, and in it one for each trajectory:

    /<molecule>              attributes: frame_fs (required), pos_scale, vel_scale, smiles, pbc,
                             method, thermostat (where there was one), ...
        numbers  [atoms]     atomic numbers
        masses   [atoms]     amu; only where they are not the standard ones
        cell     [3, 3]      Å, rows are lattice vectors; only where pbc is set
        /<trajectory>        attributes: temperature_K, ...
            positions  [frames, atoms, 3]   floats in Å, or integers: times pos_scale gives Å
            velocities [frames, atoms, 3]   floats in Å/fs, or integers: times vel_scale gives Å/fs
            energy     [frames]             potential + kinetic, eV; optional
            dipole     [frames, 3]          e Å; optional

Positions of periodic systems are unwrapped. A group whose name starts with an underscore is not
read.
"""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ase.io
import ase.units
import h5py
import numpy as np
from ase.data import atomic_masses
from ase.io.formats import filetype
from ase.io.trajectory import TrajectoryReader as AseReader

from ..io import exchange
from ..io.extxyz_format import check_columns
from ..io.hdf5_files import changing, reading
from ..io.hdf5_format import is_h5md_of_others
from ..io.trajectory import Trajectory, is_hdf5_trajectory
from ..mechanics import check_even, momenta_from_velocities, velocities_from_positions
from ..system import check_unconstrained

# So far may positions be apart that velocities are derived from, with and without hydrogen (fs):
# the fastest vibrations, at 4000 and 2500 cm^-1, come out 5 % too slow.
_LONGEST_FS = {True: 2.0, False: 3.2}
HDF5_SUFFIXES = (".h5", ".hdf5", ".h5md")

# molecule, smiles, trajectory, and a function that reads it
_Entry = tuple[str, str | None, str, Callable[[], "Record"]]


@dataclass(frozen=True, eq=False)
class Record:
    """One trajectory with evenly spaced frames.

    Raises ValueError where shapes disagree or a value is not finite.
    """

    molecule: str  # name of the HDF5 group, or stem of the imported file
    trajectory: str  # e.g. "traj00"
    numbers: np.ndarray  # int64 [atoms]
    masses: np.ndarray  # float64 [atoms], amu
    positions: np.ndarray  # float32 [frames, atoms, 3], Å, unwrapped
    velocities: np.ndarray  # float32 [frames, atoms, 3], Å/fs; all NaN: not known
    frame_fs: float  # time between frames, fs
    energy: np.ndarray | None  # float64 [frames], potential + kinetic, eV
    temperature_K: float | None  # target of the simulation, K
    smiles: str | None
    cell: np.ndarray  # float64 [3, 3], Å, rows are lattice vectors; zeros where not periodic
    pbc: np.ndarray  # bool [3]
    method: str | None = None  # what made it, e.g. "GFN2-xTB (tblite)"
    dipole: np.ndarray | None = None  # float32 [frames, 3], e Å
    thermostat: str | None = None  # what acted on it, e.g. "nose-hoover"; None: constant energy

    def __post_init__(self) -> None:
        where = f"{self.molecule}/{self.trajectory}"
        atoms = len(self.numbers)
        if self.numbers.ndim != 1 or atoms == 0:
            raise ValueError(
                f"{where}: numbers has shape {self.numbers.shape}, expected [atoms] with atoms > 0"
            )
        unknown = (self.numbers < 1) | (self.numbers >= len(atomic_masses))
        if unknown.any():
            atom = int(np.argmax(unknown))
            raise ValueError(
                f"{where}: atom {atom} has atomic number {self.numbers[atom]}, "
                f"expected 1 to {len(atomic_masses) - 1}"
            )
        frames = len(self.positions) if self.positions.ndim else 0
        if frames < 2:
            raise ValueError(f"{where}: {frames} frames, expected at least 2")
        shapes = {
            "masses": (atoms,),
            "positions": (frames, atoms, 3),
            "velocities": (frames, atoms, 3),
        }
        shapes |= {"energy": (frames,), "dipole": (frames, 3), "cell": (3, 3), "pbc": (3,)}
        for name, shape in shapes.items():
            value = getattr(self, name)
            if value is None:
                continue
            if value.shape != shape:
                raise ValueError(f"{where}: {name} has shape {value.shape}, expected {shape}")
            finite = np.isfinite(value)
            if name == "velocities" and np.isnan(value).all():
                continue  # not known, where load_records was told that they need not be
            if not finite.all():
                index = tuple(int(i) for i in np.argwhere(~finite)[0])
                raise ValueError(
                    f"{where}: {name}{list(index)} is {value[index]}, expected finite numbers"
                )
        if not (np.isfinite(self.frame_fs) and self.frame_fs > 0):
            raise ValueError(
                f"{where}: frame_fs is {self.frame_fs}, expected a positive time in fs"
            )
        if (self.masses <= 0).any():
            atom = int(np.argmax(self.masses <= 0))
            raise ValueError(
                f"{where}: atom {atom} has mass {self.masses[atom]} amu, expected a positive one"
            )
        if self.pbc.any() and abs(np.linalg.det(_complete(self.cell, self.pbc))) < 1e-6:
            raise ValueError(
                f"{where}: pbc is {self.pbc.tolist()}, but the cell is singular: "
                f"{self.cell.tolist()}"
            )


def load_records(
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    molecules: Iterable[str] | None = None,
    trajectories: Iterable[str] | None = None,
    exclude_trajectories: Iterable[str] | None = None,
    frame_fs: float | None = None,
    masses: str | None = None,
    velocities: bool = True,
) -> list[Record]:
    """All trajectories of the given files, in the order of the files and of the names in them.

    `.h5`, `.hdf5` and `.h5md` files are read as described at the top of this module, or, where
    `Trajectory.write` or `simulate` made them, as one trajectory "traj00". So are `.trr`, `.dcd`
    and `.xtc` files and H5MD files of other programs, with the atoms in a file of the same name
    (`io.exchange`); `.dcd`, `.xtc` and plain `.xyz` hold no velocities: these are derived from
    positions, with a warning, where frames are close enough to tell the fastest vibrations.
    Anything else goes through `ase.io.read` (extxyz, traj, ...) as one trajectory "traj00": every
    frame needs velocities (ASE's momenta), and the spacing of the frames comes from
    `info["time_fs"]` or `info["time"]` (fs), or from what ASE's MD noted in a .traj file (its time
    step and interval), or where those are missing from `frame_fs`, which also overrides
    `info["time"]`: programs differ in its unit. Wrapped positions are unwrapped.

    molecules: keep only these, by name or by SMILES. trajectories: keep only these names.
    exclude_trajectories: drop these names. masses: "standard": those of the elements in place of
    the files'; None: as they are. velocities: whether all frames have to have them; if not, where
    files of other programs lack them and frames are too far apart, those of a record are all NaN.
    Raises ValueError, naming file and group, for files that break the format, and for names that no
    file has.
    """
    files = [Path(p) for p in ([paths] if isinstance(paths, (str, os.PathLike)) else paths)]
    if masses not in (None, "standard"):
        raise ValueError(f'masses must be "standard", or None for those of files, got {masses!r}')
    wanted = None if molecules is None else set(_names(molecules))
    kept = None if trajectories is None else set(_names(trajectories))
    dropped = set() if exclude_trajectories is None else set(_names(exclude_trajectories))
    records: list[Record] = []
    seen: set[str] = set()
    seen_trajectories: set[str] = set()
    for path in files:
        if not path.is_file():
            raise ValueError(f"{path}: no such file")
        suffix = path.suffix.lower()
        read = _READERS.get(suffix, _read_hdf5 if suffix in HDF5_SUFFIXES else _read_ase)
        for molecule, smiles, trajectory, make in read(path, frame_fs, velocities):
            seen |= {molecule} if smiles is None else {molecule, smiles}
            seen_trajectories.add(trajectory)
            if wanted is not None and not wanted & {molecule, smiles}:
                continue
            if (kept is not None and trajectory not in kept) or trajectory in dropped:
                continue
            try:
                records.append(make())
                if velocities and np.isnan(records[-1].velocities).all():
                    raise ValueError(f"{trajectory}: velocities are nan, expected finite numbers")
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from None
            except _DAMAGE as error:
                raise ValueError(f"{path}: {trajectory} is damaged ({error})") from error
            if masses == "standard":
                numbers = records[-1].numbers
                records[-1] = dataclasses.replace(records[-1], masses=atomic_masses[numbers])
    listing = ", ".join(str(p) for p in files)
    if wanted is not None and wanted - seen:
        raise ValueError(
            f"molecules {sorted(wanted - seen)} are in none of {listing}; {_sample(seen)}"
        )
    for what, names in (("trajectories", kept), ("exclude_trajectories", dropped)):
        if names and names - seen_trajectories:
            raise ValueError(
                f"{what} {sorted(names - seen_trajectories)} are in none of {listing}; "
                f"{_sample(seen_trajectories)}"
            )
    if not records:
        raise ValueError(f"no trajectory to read in {listing or 'an empty list of files'}")
    return records


def _names(names: Iterable[str]) -> Iterable[str]:
    return [names] if isinstance(names, str) else names


def _sample(names: set[str]) -> str:
    some = sorted(names)[:8]
    return (
        f"there are {', '.join(some)}{', ...' if len(names) > 8 else ''}"
        if some
        else "there are none"
    )


def _complete(cell: np.ndarray, pbc: np.ndarray) -> np.ndarray:
    """The cell with zero vectors along directions without pbc replaced, so that it inverts."""
    cell = np.array(cell, float)
    missing = ~np.asarray(pbc) & (np.linalg.norm(cell, axis=1) < 1e-9)
    if missing.any() and not missing.all():
        # The last rows are orthonormal to all that are given.
        _, _, rows = np.linalg.svd(cell[~missing])
        cell[missing] = rows[len(cell) - missing.sum() :]
    return cell


# What HDF5 raises for damaged files.
_DAMAGE = (OSError, RuntimeError, LookupError, TypeError, AttributeError, MemoryError, UnicodeError)


def _read_hdf5(path: Path, frame_fs: float | None, velocities: bool) -> Iterator[_Entry]:
    """Every trajectory of an HDF5 file."""
    if is_hdf5_trajectory(path):
        yield path.stem, None, "traj00", lambda: _from_trajectory(path, frame_fs)
        return
    if is_h5md_of_others(path):
        yield from _read_exchange(path, frame_fs, velocities)
        return
    try:
        with reading(path) as file:
            for molecule in file:
                if molecule.startswith("_"):
                    continue
                _check_own(path, file, molecule)
                group = file[molecule]
                if not isinstance(group, h5py.Group):
                    raise ValueError(
                        f"{path}: {molecule} is a data set, expected one group per molecule"
                    )
                common = _read_common(path, group)
                for trajectory in group:
                    _check_own(path, group, trajectory)
                    node = group[trajectory]
                    if not isinstance(node, h5py.Group) or trajectory.startswith("_"):
                        continue
                    smiles = common["smiles"]

                    def make(node: h5py.Group = node, common: dict = common) -> Record:
                        return _read_trajectory(path, node, common)

                    yield molecule, smiles, trajectory, make
    except _DAMAGE as error:
        raise ValueError(f"{path}: not a readable HDF5 file, or damaged ({error})") from error


def _check_own(path: Path, group: h5py.Group, name: str) -> None:
    """Refuse what is not in the file itself: it would be read from anywhere on this machine."""
    where = f"{path}: {group.name.rstrip('/')}/{name}"
    if not isinstance(group.get(name, getlink=True), h5py.HardLink):
        raise ValueError(f"{where} is a link; expected the data themselves")
    node = group[name]
    if isinstance(node, h5py.Dataset) and (node.external or node.is_virtual):
        raise ValueError(f"{where} is stored in other files; expected the data themselves")


def _read_common(path: Path, group: h5py.Group) -> dict[str, Any]:
    """What the trajectories of one molecule share: fields of Record, and scales of integers."""
    molecule = group.name.strip("/")
    if not isinstance(group.get("numbers"), h5py.Dataset):
        raise ValueError(f"{path}: {molecule}: no data set 'numbers' (atomic numbers)")
    if "frame_fs" not in group.attrs:
        raise ValueError(f"{path}: {molecule}: no attribute 'frame_fs' (time between frames, fs)")
    numbers = np.atleast_1d(group["numbers"][()]).astype(np.int64)
    if "masses" in group:
        masses = group["masses"][()].astype(np.float64)
    else:  # numbers out of range are refused by Record
        masses = atomic_masses[np.where((numbers > 0) & (numbers < len(atomic_masses)), numbers, 1)]
    smiles, method, thermostat = (
        _text(group.attrs.get(name)) for name in ("smiles", "method", "thermostat")
    )
    return {
        "molecule": molecule,
        "numbers": numbers,
        "masses": masses,
        "frame_fs": float(group.attrs["frame_fs"]),
        "smiles": smiles,
        "method": method,
        "thermostat": thermostat,
        "cell": group["cell"][()].astype(np.float64) if "cell" in group else np.zeros((3, 3)),
        "pbc": np.broadcast_to(np.asarray(group.attrs.get("pbc", False), bool), (3,)).copy(),
        "scales": {
            k: float(group.attrs[k]) for k in ("pos_scale", "vel_scale") if k in group.attrs
        },
    }


def _text(value: str | bytes | None) -> str | None:
    return value.decode() if isinstance(value, bytes) else value


def _read_trajectory(path: Path, node: h5py.Group, common: dict[str, Any]) -> Record:
    for name in node:
        _check_own(path, node, name)
    fields = {k: v for k, v in common.items() if k != "scales"}
    trajectory = node.name.rsplit("/", 1)[1]
    where = f"{common['molecule']}/{trajectory}"
    for name, scale in (("positions", "pos_scale"), ("velocities", "vel_scale")):
        if name not in node:
            raise ValueError(f"{where}: no data set '{name}'")
        raw = node[name][()]
        if np.issubdtype(raw.dtype, np.integer):
            if scale not in common["scales"]:
                raise ValueError(
                    f"{where}: {name} are integers, but the group has no attribute '{scale}'"
                )
            fields[name] = (raw * common["scales"][scale]).astype(np.float32)
        else:
            fields[name] = raw.astype(np.float32)
    fields["energy"] = node["energy"][()].astype(np.float64) if "energy" in node else None
    fields["dipole"] = node["dipole"][()].astype(np.float32) if "dipole" in node else None
    temperature = float(node.attrs["temperature_K"]) if "temperature_K" in node.attrs else None
    return Record(trajectory=trajectory, temperature_K=temperature, **fields)


def _from_trajectory(path: Path, frame_fs: float | None) -> Record:
    held = Trajectory.read(path)
    periodic = held.atoms.pbc.any()
    return Record(
        molecule=path.stem,
        trajectory="traj00",
        numbers=held.atoms.numbers.astype(np.int64),
        masses=held.atoms.get_masses(),
        positions=held.positions.astype(np.float32),
        velocities=held.velocities.astype(np.float32),
        frame_fs=_even(held.times, "the file", path.stem, frame_fs),
        energy=held.total_energies,
        temperature_K=None,
        smiles=None,
        cell=np.array(held.atoms.cell, float) if periodic else np.zeros((3, 3)),
        pbc=held.atoms.pbc.copy(),
    )


def _read_ase(path: Path, frame_fs: float | None, velocities: bool) -> Iterator[_Entry]:
    """The one trajectory of a file that ase.io reads."""
    check_columns(path)
    try:
        frames = list(ase.io.iread(path, index=":"))
    except Exception as error:  # readers of ase.io raise anything
        raise ValueError(
            f"{path}: ase.io cannot read it ({type(error).__name__}: {error})"
        ) from None
    noted = _noted_spacing(path)
    yield path.stem, None, "traj00", lambda: _from_frames(frames, path, frame_fs, noted, velocities)


def _read_exchange(path: Path, frame_fs: float | None, velocities: bool) -> Iterator[_Entry]:
    """The one trajectory of a .dcd, .xtc or .trr file, or of an H5MD file of another program."""
    yield path.stem, None, "traj00", lambda: _from_exchange(path, frame_fs, velocities)


_READERS = dict.fromkeys(exchange.BINARY, _read_exchange)


def _from_exchange(path: Path, frame_fs: float | None, needed: bool) -> Record:
    atoms, times, positions, velocities = exchange.read(path)
    if frame_fs is None:  # times are in single precision
        spacing = float(times[-1] - times[0]) / max(len(times) - 1, 1)
        even = times[0] + spacing * np.arange(len(times))
        if not np.allclose(times, even, rtol=1e-6, atol=1e-3 * abs(spacing)):
            check_even(times, path.stem, rtol=1e-3)
        frame_fs = float(f"{spacing:.5g}")
    cell = np.array(atoms.cell, float)
    positions = unwrap(positions, cell, atoms.pbc)
    if velocities is None:
        velocities = _derived(positions, atoms, frame_fs, path, needed)
    return Record(
        molecule=path.stem,
        trajectory="traj00",
        numbers=atoms.numbers.astype(np.int64),
        masses=atoms.get_masses(),
        positions=positions.astype(np.float32),
        velocities=velocities.astype(np.float32),
        frame_fs=frame_fs,
        energy=None,
        temperature_K=None,
        smiles=None,
        cell=cell if atoms.pbc.any() else np.zeros((3, 3)),
        pbc=atoms.pbc.copy(),
    )


def _derived(
    positions: np.ndarray, atoms: ase.Atoms, frame_fs: float, path: Path, needed: bool
) -> np.ndarray:
    """Velocities of a file that has none, from unwrapped positions."""
    longest = _LONGEST_FS["H" in atoms.get_chemical_symbols()]
    if frame_fs > longest:
        if not needed:
            return np.full_like(positions, np.nan)
        raise ValueError(
            f"{path.stem}: {path.suffix} files hold no velocities, and positions every "
            f"{frame_fs:g} fs do not tell them (at most {longest:g} fs would): use .trr, .traj, "
            ".extxyz or .h5"
        )
    rounding = " and rounded to 0.01 Å, which shows in them" if path.suffix == ".xtc" else ""
    warnings.warn(
        f"{path}: velocities are derived from positions, {frame_fs:g} fs apart{rounding}",
        stacklevel=2,
    )
    return velocities_from_positions(positions, frame_fs)


def _noted_spacing(path: Path) -> float | None:
    """The time between frames (fs) that ASE's MD notes in a .traj file."""
    if filetype(str(path)) != "traj":
        return None
    with AseReader(path) as reader:
        noted = reader.description or {}
    if noted.get("type") != "molecular-dynamics" or not {"timestep", "interval"} <= noted.keys():
        return None
    return noted["timestep"] * noted["interval"] / ase.units.fs


def _from_frames(
    frames: list[ase.Atoms], path: Path, frame_fs: float | None, noted: float | None, needed: bool
) -> Record:
    first, molecule = frames[0], path.stem
    may_lack = path.suffix.lower() == ".xyz" or not needed
    still = may_lack and not any(atoms.has("momenta") for atoms in frames)
    check_unconstrained(first, molecule)
    for index, atoms in enumerate(frames):
        if not np.array_equal(atoms.numbers, first.numbers):
            raise ValueError(
                f"{molecule}: frame {index} has other atoms ({atoms.symbols}) "
                f"than frame 0 ({first.symbols})"
            )
        if not still and not atoms.has("momenta"):
            raise ValueError(
                f"{molecule}: frame {index} has no velocities; write the file with momenta, "
                "as ase.io.write does for atoms that have them"
            )
        if not np.array_equal(atoms.pbc, first.pbc) or not np.allclose(
            atoms.cell, first.cell, rtol=0, atol=1e-6
        ):
            raise ValueError(
                f"{molecule}: the cell of frame {index} differs from that of frame 0; "
                "only trajectories at constant cell (NVE, NVT) can be used"
            )
    cell = np.array(first.cell, float) if first.pbc.any() else np.zeros((3, 3))
    positions = unwrap(np.stack([atoms.positions for atoms in frames]), cell, first.pbc)
    spacing = _frame_spacing(frames, molecule, frame_fs, noted)
    if still:
        velocities = _derived(positions, first, spacing, path, needed)
    else:
        velocities = np.stack([atoms.get_velocities() for atoms in frames]) * ase.units.fs
    return Record(
        molecule=molecule,
        trajectory="traj00",
        numbers=first.numbers.astype(np.int64),
        masses=first.get_masses(),
        positions=positions.astype(np.float32),
        velocities=velocities.astype(np.float32),
        frame_fs=spacing,
        energy=_total_energy(frames),
        temperature_K=first.info.get("temperature_K"),
        smiles=first.info.get("smiles"),
        cell=cell,
        pbc=first.pbc.copy(),
        dipole=_dipoles(frames),
    )


def _frame_spacing(
    frames: list[ase.Atoms], molecule: str, frame_fs: float | None, noted: float | None
) -> float:
    key = next((k for k in ("time_fs", "time") if all(k in atoms.info for atoms in frames)), None)
    if key == "time" and frame_fs is not None:
        return frame_fs
    if key is not None:
        try:
            times = np.array([float(atoms.info[key]) for atoms in frames])
        except ValueError as error:
            raise ValueError(
                f'{molecule}: info["{key}"] is not a time in fs ({error}); give the spacing of the '
                "frames as frame_fs (fs)"
            ) from None
        return _even(times, f'info["{key}"]', molecule, frame_fs)
    if noted is not None:
        for k, (a, b) in enumerate(zip(frames, frames[1:], strict=False)):
            if np.array_equal(a.positions, b.positions):  # MD that was continued writes one twice
                raise ValueError(f"{molecule}: frames {k} and {k + 1} are the same; drop one")
        return _even(noted * np.arange(len(frames)), "the file", molecule, frame_fs)
    if frame_fs is None and len(frames) == 1:
        raise ValueError(
            f"{molecule}: one frame without a time is a structure and no trajectory; "
            "`mdtrajnet simulate` makes a trajectory of it"
        )
    if frame_fs is None:
        raise ValueError(
            f'{molecule}: the frames carry no info["time_fs"] or info["time"]; '
            "give their spacing as frame_fs (fs), on the command line as --frame"
        )
    return frame_fs


def check_constant_energy(records: Iterable[Record], what: str) -> None:
    """Refuse records with a thermostat, for what takes their energy to be constant.

    Raises ValueError, which names the first such record and the purpose.
    """
    for record in records:
        if record.thermostat is not None:
            raise ValueError(
                f"{record.molecule}/{record.trajectory} was made with a thermostat "
                f"({record.thermostat}), and {what} needs trajectories at constant energy"
            )


def thermostatted_at(records: Iterable[Record]) -> float | None:
    """The temperature (K) that thermostats kept all of the records at; None if there is no one."""
    kelvins = {None if record.thermostat is None else record.temperature_K for record in records}
    return kelvins.pop() if len(kelvins) == 1 else None


def as_trajectory(record: Record) -> Trajectory:
    """A record's frames, the first one at 0 fs."""
    return Trajectory(
        ase.Atoms(
            record.numbers,
            record.positions[0],
            masses=record.masses,
            cell=record.cell,
            pbc=record.pbc,
        ),
        record.frame_fs * np.arange(len(record.positions)),
        record.positions,
        momenta_from_velocities(record.velocities.astype(float), record.masses),
    )


def _even(times: np.ndarray, source: str, molecule: str, frame_fs: float | None) -> float:
    """The spacing of times [frames] in fs. ValueError where it varies or is not frame_fs."""
    check_even(times, molecule, rtol=1e-4)
    steps = np.diff(times)
    spacing = round(float(np.mean(steps)), 9) if len(steps) else 1.0  # 0.5, not 0.499...
    if frame_fs is not None and not np.isclose(frame_fs, spacing, rtol=1e-4):
        raise ValueError(
            f"{molecule}: frame_fs is {frame_fs:g}, but {source} says {spacing:g} fs; "
            "leave frame_fs out"
        )
    return spacing


def _total_energy(frames: list[ase.Atoms]) -> np.ndarray | None:
    """Potential + kinetic energy, eV, where every frame carries its potential energy."""
    if not all(atoms.calc is not None and "energy" in atoms.calc.results for atoms in frames):
        return None
    if all(np.isnan(atoms.calc.results["energy"]) for atoms in frames):
        return None  # how a calculator says that it does not know
    return np.array([atoms.get_potential_energy() + atoms.get_kinetic_energy() for atoms in frames])


def _dipoles(frames: list[ase.Atoms]) -> np.ndarray | None:
    """e Å, where every frame carries its dipole moment."""
    if not all(atoms.calc is not None and "dipole" in atoms.calc.results for atoms in frames):
        return None
    return np.array([atoms.get_dipole_moment() for atoms in frames], np.float32)


def unwrap(positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> np.ndarray:
    """Positions without the jumps of wrapping: no atom moves over half a cell between frames.

    positions [frames, atoms, 3] in Å; cell [3, 3] in Å, rows are lattice vectors; pbc [3].
    The first frame stays as it is.
    """
    if not np.any(pbc):
        return positions
    lattice = _complete(cell, pbc)
    jumps = np.round(np.diff(positions, axis=0) @ np.linalg.inv(lattice)) * np.asarray(pbc)
    shifts = np.concatenate([np.zeros_like(positions[:1]), np.cumsum(jumps, axis=0)])
    return positions - shifts @ lattice


class Writer:
    """Appends trajectories to one HDF5 file, each of them whole or not at all.

    The file is open only while something is written (:func:`~mdtrajnet_fast.io.hdf5_files.changing`
    says how): a run that is interrupted or killed, or finds no room on the disk, leaves a readable
    file of complete trajectories. One writer a file at a time.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if self.path.suffix.lower() not in HDF5_SUFFIXES:
            raise ValueError(
                f"{self.path}: expected a name that ends in {' or '.join(HDF5_SUFFIXES)}"
            )
        if not self.path.parent.is_dir():
            raise ValueError(f"{self.path}: there is no folder {self.path.parent}; make it first")
        if self.path.exists() and not _is_hdf5(self.path):
            raise ValueError(f"{self.path}: exists and is not an HDF5 file; choose another name")

    def contents(self) -> dict[str, set[str]]:
        """Names of the complete trajectories of every group."""
        if not self.path.exists():
            return {}
        with reading(self.path) as file:
            return {
                name: {
                    k
                    for k, v in group.items()
                    if isinstance(v, h5py.Group) and not k.startswith("_")
                }
                for name, group in file.items()
                if not name.startswith("_")
            }

    def check(self, name: str, numbers: np.ndarray, **attributes: Any) -> None:
        """Raises ValueError, saying what differs, unless group `name` has these attributes.

        One that is None must not be there.
        """
        with reading(self.path) as file:
            stored = {**file[name].attrs, "numbers": file[name]["numbers"][()]}
        for key, new in {**attributes, "numbers": numbers}.items():
            old = stored.get(key)
            same = old is new if old is None or new is None else np.array_equal(old, new)
            if not same:
                raise ValueError(
                    f"{self.path}: group {name} was written with {key} = {old}, but now {key} = "
                    f"{new}; continue the file with its own settings, or write to another file"
                )

    def add_group(
        self,
        name: str,
        numbers: np.ndarray,  # [atoms]
        *,
        frame_fs: float,
        masses: np.ndarray | None = None,  # [atoms], amu
        cell: np.ndarray | None = None,  # [3, 3], Å
        pbc: np.ndarray | None = None,  # [3]
        pos_scale: float | None = None,
        vel_scale: float | None = None,
        **attributes: Any,
    ) -> None:
        """Makes the group of one molecule.

        pos_scale (Å) and vel_scale (Å/fs): store int16 counts of this size; None stores float32.
        Raises ValueError where the group exists, or where the name cannot name one.
        """
        check_name(name)
        numbers = np.asarray(numbers)
        arrays = {"numbers": numbers.astype(np.uint8)}
        if masses is not None and not np.array_equal(masses, atomic_masses[numbers]):
            arrays["masses"] = np.asarray(masses, np.float64)
        scales = {"pos_scale": pos_scale, "vel_scale": vel_scale}
        attributes |= {"frame_fs": float(frame_fs)} | {
            k: v for k, v in scales.items() if v is not None
        }
        if pbc is not None and np.any(pbc):
            arrays["cell"] = np.asarray(cell, np.float64)
            attributes["pbc"] = np.asarray(pbc, bool)
        with changing(self.path) as file:
            if name in file:
                raise ValueError(f"{self.path}: group {name} exists already")
            group = file.create_group(name)
            group.attrs.update(attributes)
            for key, value in arrays.items():
                group[key] = value

    def append(
        self,
        name: str,
        trajectory: str,
        positions: np.ndarray,  # [frames, atoms, 3], Å
        velocities: np.ndarray,  # [frames, atoms, 3], Å/fs
        *,
        energy: np.ndarray | None = None,  # [frames], eV
        dipole: np.ndarray | None = None,  # [frames, 3], e Å
        **attributes: Any,
    ) -> None:
        """Adds one trajectory to a group made by `add_group`.

        Raises ValueError where the trajectory exists, the shapes disagree with the group, or a
        value is not finite or does not fit the group's int16 counts.
        """
        check_name(trajectory)
        with changing(self.path) as file:
            if name not in file:
                raise ValueError(f"{self.path}: no group {name}; make it with add_group first")
            group = file[name]
            where = f"{self.path}: {name}/{trajectory}"
            if trajectory in group:
                raise ValueError(f"{where} exists already")
            frames, atoms = len(positions), len(group["numbers"])
            pos_scale, vel_scale = (group.attrs.get(k) for k in ("pos_scale", "vel_scale"))
            arrays = {
                "positions": _encode(
                    f"{where}: positions", positions, (frames, atoms, 3), "f4", pos_scale
                ),
                "velocities": _encode(
                    f"{where}: velocities", velocities, (frames, atoms, 3), "f4", vel_scale
                ),
            }
            if energy is not None:
                arrays["energy"] = _encode(f"{where}: energy", energy, (frames,), "f8")
            if dipole is not None:
                arrays["dipole"] = _encode(f"{where}: dipole", dipole, (frames, 3), "f4")
            node = group.create_group(trajectory)
            node.attrs.update(attributes)
            for key, value in arrays.items():
                node.create_dataset(key, data=value, compression="gzip", shuffle=True)


def _is_hdf5(path: Path) -> bool:
    try:
        with reading(path):
            return True
    except OSError:
        return False


def check_name(name: str) -> None:
    """Raises ValueError unless this can name a group of the file."""
    if not name or "/" in name or name[0] in "._":
        raise ValueError(
            f"{name!r} cannot name a group: expected a name without '/' "
            "that does not start with '.' or '_'"
        )


def _encode(
    where: str, values: np.ndarray, shape: tuple[int, ...], dtype: str, scale: float | None = None
) -> np.ndarray:
    """The values as dtype, or as int16 counts of `scale`."""
    values = np.asarray(values, np.float64)
    if values.shape != shape:
        raise ValueError(f"{where} have shape {values.shape}, expected {shape}")
    if not np.isfinite(values).all():
        index = [int(i) for i in np.argwhere(~np.isfinite(values))[0]]
        raise ValueError(f"{where}{index} is not finite")
    if scale is None:
        return values.astype(dtype)
    counts = np.rint(values / scale)
    if np.abs(counts).max() > 32767:
        index = [int(i) for i in np.unravel_index(np.argmax(np.abs(counts)), shape)]
        raise ValueError(
            f"{where}{index} = {values[tuple(index)]:.6g} does not fit int16 counts of {scale:g} "
            f"(at most {32767 * scale:.4g}); use a larger scale or store floats (no scale)"
        )
    return counts.astype(np.int16)


_SAID_OF_ALL = ("smiles", "method", "thermostat")
_SHARED = ("numbers", "masses", "frame_fs", "cell", "pbc", *_SAID_OF_ALL)


def write_records(path: str | os.PathLike[str], records: Iterable[Record]) -> None:
    """Writes records, say of an imported extxyz file, to an HDF5 file as float32.

    Where the file exists, their groups are added to it. Records of one molecule share its group, so
    they must agree in atoms, masses, frame_fs, smiles, cell and method; ValueError where they do
    not.
    """
    writer = Writer(path)
    first: dict[str, Record] = {}
    for record in records:
        one = first.setdefault(record.molecule, record)
        for key in _SHARED:
            old, new = getattr(one, key), getattr(record, key)
            if not np.array_equal(old, new):
                raise ValueError(
                    f"{path}: {record.molecule}/{record.trajectory} has {key} = {new}, but "
                    f"{one.trajectory} has {old}; give one of them another molecule name "
                    "(dataclasses.replace)"
                )
        if one is record:
            said: dict[str, Any] = {x: getattr(record, x) for x in _SAID_OF_ALL}
            writer.add_group(
                record.molecule,
                record.numbers,
                frame_fs=record.frame_fs,
                masses=record.masses,
                cell=record.cell,
                pbc=record.pbc,
                **{key: value for key, value in said.items() if value is not None},
            )
        target: dict[str, Any] = {}
        if record.temperature_K is not None:
            target["temperature_K"] = record.temperature_K
        writer.append(
            record.molecule,
            record.trajectory,
            record.positions,
            record.velocities,
            energy=record.energy,
            dipole=record.dipole,
            **target,
        )
