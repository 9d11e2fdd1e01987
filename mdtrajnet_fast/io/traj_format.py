"""Trajectories in ASE's own binary format, .traj.

In every frame ``info["time_fs"]`` and, where they are known, the potential energy (eV), as that of
a SinglePointCalculator, and the heat of a thermostat, ``info["heat_eV"]``.

ASE writes the data of a frame, then its place in the index, then the number of frames: a kill
leaves the frames before.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import ase
import numpy as np
from ase.io.trajectory import TrajectoryReader as AseReader
from ase.io.trajectory import TrajectoryWriter as AseWriter

from .descriptions import HEAT, as_text, described, plain
from .formats import DAMAGE, Array, Format, Metadata, Scalars, as_json, foreign, lacks


class Sink:
    """See :class:`.formats.Format`."""

    # Arrays that ASE does not write are in info["more_arrays"] of frame 0.
    _HELD = frozenset(("tags", "initial_charges", "initial_magmoms"))

    def __init__(self, path: Path, atoms: ase.Atoms, metadata: Metadata) -> None:
        self.path, self.atoms, self.metadata = path, atoms.copy(), metadata
        held = as_text(path, atoms.info)
        self.atoms.info = {k: v for k, v in atoms.info.items() if k in held}
        _, arrays = described(atoms)
        self.more = {k: plain(v) for k, v in arrays.items() if k not in self._HELD}
        self.file = AseWriter(str(path), "a")

    def write(
        self, start: int, times: Array, positions: Array, momenta: Array, scalars: Scalars
    ) -> None:
        # One frame for all, and energies beside it: ASE would compare every frame with the copy
        # that a calculator has of it, which takes longer than to write it.
        frame, results = self.atoms.copy(), {}
        for k, (time, x, p) in enumerate(zip(times, positions, momenta, strict=True)):
            frame.positions, frame.info = x, self.atoms.info | {"time_fs": float(time)}
            frame.set_array("momenta", p, float, (3,))
            if "heat" in scalars:
                frame.info[HEAT] = float(scalars["heat"][k])
            if "potential_energies" in scalars:
                results["energy"] = float(scalars["potential_energies"][k])
            if start + k == 0:
                frame.info["metadata"] = self.metadata
                if self.more:
                    frame.info["more_arrays"] = self.more
            self.file.write(frame, **results)

    def close(self) -> None:
        self.file.close()

    def abandon(self, frames: int) -> None:
        with suppress(OSError):  # again that of the write
            self.file.backend.fd.close()  # ASE's close would count what is half written
        truncate(self.path, frames)


def count(path: Path) -> int:
    """See :class:`.formats.Format`."""
    if path.stat().st_size == 0:
        return 0
    try:
        reader = AseReader(str(path))
    except DAMAGE as error:
        if path.stat().st_size < 56:  # killed before the header was whole
            return 0
        raise ValueError(f"{path} is not a readable ASE trajectory: {error}") from error
    with reader:
        # The index may be ahead of the data only if the file was cut (a full disk, a broken copy).
        whole = len(reader)
        while whole and not _is_whole(reader, whole - 1):
            whole -= 1
        begins = reader.backend._offsets
        if whole + 1 < len(reader) and begins[whole + 1] < path.stat().st_size:
            raise ValueError(
                f"{path} is damaged: frame {whole} cannot be read, and others follow it; restore "
                "it from a copy"
            )
        return whole


def _is_whole(reader: AseReader, i: int) -> bool:
    """Whether all of a frame is there; of the last one, also what this package writes."""
    try:
        frame = reader[i]
    except DAMAGE:
        return False
    return i + 1 < len(reader) or i == 0 or (frame.has("momenta") and "time_fs" in frame.info)


def read(
    path: Path, frames: slice
) -> tuple[ase.Atoms, list[float], Array, Array, Metadata, Scalars]:
    """See :class:`.formats.Format`."""
    n = count(path)
    times, positions, momenta = [], [], []
    with AseReader(str(path)) as reader:
        first = reader[0]
        scalars: dict[str, list[float]] = {name: [] for name in _scalars(reader.backend[0])}
        for i in range(n)[frames]:
            frame = reader.backend[i]  # Atoms of it would take several times as long
            info = frame.get("info") or {}
            if "time_fs" not in info or "momenta" not in frame:
                raise foreign(path, f"frame {i} lacks info['time_fs'] or momenta")
            times.append(info["time_fs"])
            positions.append(frame.positions)
            momenta.append(frame.momenta)
            found = _scalars(frame)
            for name, values in scalars.items():
                if name not in found:
                    raise lacks(path, i, name)
                values.append(found[name])
    # ASE's JSON turns keys such as "8" into integers; JSON again makes them text.
    metadata = as_json(first.info.get("metadata", {}))
    for name, values in first.info.pop("more_arrays", {}).items():
        first.set_array(name, np.asarray(values))
    shape = (len(times), len(first), 3)
    x, p = _stack(positions, shape), _stack(momenta, shape)
    known = {name: np.array(values, dtype=np.float64) for name, values in scalars.items()}
    return first, times, x, p, metadata, known


def _scalars(frame: Any) -> dict[str, float]:
    """What is known of :data:`.formats.SCALARS`; frame: as ASE's backend has it."""
    results = frame.calculator if "calculator" in frame else {}
    info = frame.get("info") or {}
    found = {"potential_energies": results.get("energy"), "heat": info.get(HEAT)}
    return {name: value for name, value in found.items() if value is not None}


def _stack(arrays: list[Array], shape: tuple[int, ...]) -> Any:
    return np.array(arrays, dtype=np.float64).reshape(shape)


def truncate(path: Path, frames: int) -> None:
    """See :class:`.formats.Format`."""
    # The count of frames is the little-endian int64 at byte 32 (layout: ase.io.ulm). What lies
    # beyond stays as dead space; the index has room for the frames to come.
    if frames == 0:
        os.truncate(path, 0)
    else:
        with path.open("r+b") as file:
            file.seek(32)
            file.write(np.int64(frames).astype("<i8").tobytes())


FORMAT = Format(Sink, count, read, truncate)
