"""Trajectories as extended XYZ text, .extxyz, with 17 significant digits.

(``ase.io.write`` would keep 8 decimals.) Columns ``species``, ``pos`` (Å), ``momenta`` (ASE units),
``masses`` (amu); in every comment line ``time_fs`` and, where they are known, ``energy``, the
potential energy (eV), which ``ase.io.read`` takes in, and ``heat_eV``, the heat of a thermostat. A
frame counts when all its lines are there; a torn last frame is left out.
"""

from __future__ import annotations

import json
import os
import re
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import ase
import ase.io
import numpy as np
from ase.io.formats import UnknownFileTypeError, filetype
from ase.io.jsonio import decode

from .descriptions import HEAT, as_text, described, stays_out
from .formats import Array, Format, Metadata, Scalars, foreign, lacks

_COLUMNS = "Properties=species:S:1:pos:R:3:momenta:R:3:masses:R:1"
_MANY = re.compile(rb":[RISL]:0*([1-9]\d{4,18})")
_KINDS = {"i": "I", "u": "I", "f": "R", "b": "L", "U": "S"}
_NAME = re.compile(r"[A-Za-z_]\w*")
_KEYS = {"potential_energies": "energy", "heat": HEAT}  # of comment lines, in this order
_STATE = re.compile(
    r" time_fs=(?P<time>\S+)"
    + "".join(rf"(?: {key}=(?P<{name}>\S+))?" for name, key in _KEYS.items())
)


class Sink:
    """See :class:`.formats.Format`."""

    def __init__(self, path: Path, atoms: ase.Atoms, metadata: Metadata) -> None:
        self.path, self.metadata = path, metadata
        info, arrays = described(atoms)
        columns, cells = _COLUMNS, [[repr(mass)] for mass in atoms.get_masses().tolist()]
        for name, values in arrays.items():
            table = values.reshape(len(atoms), -1) if values.ndim < 3 else None
            texts = [] if table is None else [[*map(_cell, row)] for row in table.tolist()]
            if (
                table is None
                or values.dtype.kind not in _KINDS
                or not _NAME.fullmatch(name)
                or any(len(cell.split()) != 1 for row in texts for cell in row)
            ):
                stays_out(path, f"the array {name!r}", "it does not fit columns of text")
                continue
            columns += f":{name}:{_KINDS[values.dtype.kind]}:{table.shape[1]}"
            cells = [[*row, *more] for row, more in zip(cells, texts, strict=True)]
        self.header = f"{columns} " + 'pbc="{} {} {}"'.format(
            *("T" if on else "F" for on in atoms.pbc)
        )
        if atoms.cell.any():
            cell = " ".join(repr(float(c)) for c in atoms.cell[:].ravel())
            self.header = f'Lattice="{cell}" {self.header}'
        self.info = ""
        for key, text in as_text(path, info).items():
            if _NAME.fullmatch(key):
                self.info += f" {key}={_json(text)}"
            else:
                stays_out(path, f"info[{key!r}]", "its name is not one word")
        self.count = f"{len(atoms)}\n"
        self.body = "".join(
            f"{symbol:<2}" + 6 * " % .16e" + " " + " ".join(row).replace("%", "%%") + "\n"
            for symbol, row in zip(atoms.get_chemical_symbols(), cells, strict=True)
        )
        self.file = path.open("ab")

    def write(
        self, start: int, times: Array, positions: Array, momenta: Array, scalars: Scalars
    ) -> None:
        for k, (t, x, p) in enumerate(zip(times, positions, momenta, strict=True)):
            # before info, which may hold any text
            comment = f"{self.header} time_fs={float(t)!r}"
            for name, key in _KEYS.items():
                if name in scalars:
                    comment += f" {key}={float(scalars[name][k])!r}"
            comment += self.info
            if start + k == 0:
                comment += f" metadata={_json(json.dumps(self.metadata))}"
            body = self.body % tuple(np.concatenate((x, p), axis=1).ravel().tolist())
            self.file.write(f"{self.count}{comment}\n{body}".encode())
        self.file.flush()

    def close(self) -> None:
        self.file.close()

    def abandon(self, frames: int) -> None:
        with suppress(OSError):  # again that of the write
            self.file.close()
        truncate(self.path, frames)


def check_columns(path: Path) -> None:
    """Refuse extended XYZ in which a property has 10,000 columns or more: it is damaged.

    ASE would take minutes, and all memory, to find that out; files that it takes for something else
    are not looked at. Raises ValueError.
    """
    try:
        if filetype(str(path)) != "extxyz":
            return
    except (UnknownFileTypeError, OSError):  # who reads the file will say so
        return
    with path.open("rb") as file:
        for line in file:
            if b"roperties=" in line and (found := _MANY.search(line)):
                raise ValueError(f"{path}: a property of {int(found[1])} columns; it is damaged")


def _cell(value: Any) -> str:
    return ("F", "T")[value] if isinstance(value, bool) else str(value)


def _json(text: str) -> str:
    # ASE's reader undoes one level of backslashes, then parses after "_JSON ".
    text = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"_JSON {text}"'


def _ends(path: Path) -> list[int]:
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


def count(path: Path) -> int:
    """See :class:`.formats.Format`."""
    return len(_ends(path))


def _frame(path: Path, file: BinaryIO, ends: list[int], i: int) -> tuple[dict[str, float], bytes]:
    """The time and what scalars there are of a frame, and the lines of its atoms."""
    file.seek(ends[i - 1] if i else 0)
    _, line, body = file.read(ends[i] - file.tell()).split(b"\n", 2)
    comment = line.decode()
    found = _STATE.search(comment)
    if found is None or _COLUMNS not in comment:
        raise foreign(path, f"frame {i} lacks time_fs or '{_COLUMNS}'")
    return {k: float(text) for k, text in found.groupdict().items() if text is not None}, body


def read(
    path: Path, frames: slice
) -> tuple[ase.Atoms, list[float], Array, Array, Metadata, Scalars]:
    """See :class:`.formats.Format`."""
    ends = _ends(path)
    check_columns(path)
    first = ase.io.read(path, index=0, format="extxyz")
    assert isinstance(first, ase.Atoms)
    atoms = len(first)
    chosen = range(len(ends))[frames]
    values = np.empty((len(chosen), atoms, 6))
    with path.open("rb") as file:
        series: dict[str, list[float]] = {name: [] for name in _frame(path, file, ends, 0)[0]}
        for k, i in enumerate(chosen):
            found, body = _frame(path, file, ends, i)
            for name, each in series.items():
                if name not in found:
                    raise lacks(path, i, name)
                each.append(found[name])
            table = np.array(body.split()).reshape(atoms, -1)
            values[k] = table[:, 1:7].astype(np.float64)
    for key in described(first)[0]:
        first.info[key] = decode(json.dumps(first.info[key]), always_array=False)
    metadata = first.info.get("metadata", {})
    x, p, times = values[..., :3], values[..., 3:], series.pop("time")
    known = {name: np.array(each, dtype=np.float64) for name, each in series.items()}
    return first, times, x, p, metadata, known


def truncate(path: Path, frames: int) -> None:
    """See :class:`.formats.Format`."""
    os.truncate(path, ([0] + _ends(path))[frames])


FORMAT = Format(Sink, count, read, truncate)
