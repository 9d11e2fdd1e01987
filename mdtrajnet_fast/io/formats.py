"""What the formats of trajectories have in common."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import ase
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Metadata = dict[str, Any]

# What frames may have beside their state, [frames] of one number each, with its unit. All frames of
# a file have it, or none; arguments and attributes of trajectories have these names.
SCALARS = {"potential_energies": "eV", "heat": "eV"}
Scalars = dict[str, Array]  # those that are known

# What ASE and HDF5 raise for damaged files.
DAMAGE = (
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


class Format(NamedTuple):
    """How to write and read one.

    sink: opened on a new file or on one cut to its complete frames; it has `write`, `close`, and
    `abandon`, which closes it after a write that failed. All frames of a file have the same of
    :data:`SCALARS`. count: how many complete frames there are. read: some of them, as
    :class:`.trajectory.Trajectory` takes them, the scalars last. truncate: keep the first so many.
    """

    sink: Callable[[Path, ase.Atoms, Metadata], Any]
    count: Callable[[Path], int]
    read: Callable[[Path, slice], tuple[ase.Atoms, Any, Array, Array, Metadata, Scalars]]
    truncate: Callable[[Path, int], None]


def file_state(path: Path) -> tuple[int, int]:
    """What tells whether somebody else has changed a file: size and time of the last change."""
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def as_json(metadata: Metadata) -> Metadata:
    """Metadata as JSON has it; ValueError for what JSON cannot hold."""
    try:
        return json.loads(json.dumps(metadata))
    except TypeError as error:
        raise ValueError(
            f"metadata must be a JSON object, but: {error}; convert arrays with .tolist(), NumPy "
            "numbers with .item()"
        ) from error


def lacks(path: Path, frame: int, name: str) -> ValueError:
    """What to raise for a frame without one of :data:`SCALARS` that its file has."""
    return ValueError(
        f"{path} is damaged: frame {frame} has no {name.replace('_', ' ')}, though frame 0 has; "
        "restore it from a copy"
    )


def foreign(path: Path, lack: str) -> ValueError:
    """What to raise for a file of another origin."""
    return ValueError(
        f"{path} was not written by this package: {lack}. Read it with ase.io.read(path, ':') and "
        "build a Trajectory(atoms, times, positions, momenta)"
    )
