"""The table of a campaign: a row for each of its runs, which grows while they are made."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ..model.archive import write_whole
from .plan import Member

TABLE = "table.csv"


def _trust(name: str, inner: str | None = None) -> Callable[[Member], Any]:
    def value(one: Member) -> Any:
        found = ((one.said or {}).get("trust") or {}).get(name)
        return found if inner is None or found is None else found[inner]

    return value


def _settings(name: str) -> Callable[[Member], Any]:
    return lambda one: None if one.said is None else one.said["settings"][name]


# The columns, with their units. Figures are those of the trust summary, empty where not known.
COLUMNS: dict[str, Callable[[Member], Any]] = {
    "run": lambda one: one.folder.name,
    "structure": lambda one: one.structure,
    "atoms": lambda one: one.atoms or None,
    "model": lambda one: one.model,
    "target_K": lambda one: _settings("temperature_K")(one) or one.temperature,
    "seed": lambda one: one.seed,
    "replica": lambda one: one.replica,
    "outcome": lambda one: one.outcome,
    "length_fs": _trust("end_fs"),
    "believable_fs": _trust("believable_fs"),
    "temperature_K": _trust("temperature", "mean"),
    "total_energy_eV": _trust("energies", "total"),
    "drift_meV_per_atom_ps": _trust("energies", "drift"),
    "bonds_broken": lambda one: _count(_trust("broken")(one)),
    "seconds": lambda one: (one.said or {}).get("seconds"),
    "said": lambda one: one.error or "; ".join(_trust("warnings")(one) or ()),
}


def _count(found: list[Any] | None) -> int | None:
    return None if found is None else len(found)


def write_table(folder: Path, members: Iterable[Member]) -> Path:
    """Write the table of runs that have ended, in place of the one that is there."""
    path = folder / TABLE
    file = io.StringIO(newline="")
    csv.writer(file).writerow(COLUMNS)
    _rows(file, members)
    write_whole(path, file.getvalue().encode())
    return path


def append_rows(folder: Path, members: Iterable[Member]) -> None:
    """Add the rows of runs that have ended just now."""
    with (folder / TABLE).open("a", newline="") as file:
        _rows(file, members)


def _rows(file: Any, members: Iterable[Member]) -> None:
    writer = csv.writer(file)
    for one in members:
        if one.outcome != "unfinished":
            writer.writerow([column(one) for column in COLUMNS.values()])
