"""What describes atoms whatever they do, such as tags; and atoms from that and a state."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ase
import numpy as np
from ase.calculators.calculator import all_properties
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io.jsonio import decode, encode

from .formats import Array

HEAT = "heat_eV"  # in the info of frames

# Of one moment: positions and momenta are kept elsewhere, the rest would be wrong in other frames.
_OF_A_STATE = frozenset(
    ("numbers", "positions", "momenta", "masses", "metadata", "time", "time_fs", HEAT)
).union(all_properties)


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
    kept = {"info": info, "arrays": {k: plain(v) for k, v in arrays.items()}}
    texts = {name: as_text(Path("JSON"), entries) for name, entries in kept.items()}
    return {k: {name: json.loads(text) for name, text in v.items()} for k, v in texts.items()}


def set_description(atoms: ase.Atoms, said: dict[str, Any]) -> None:
    """Give atoms what :func:`description` said. Raises ValueError, TypeError for anything else."""
    kept = decode(json.dumps(said), always_array=False)
    atoms.info.update(kept.get("info", {}))
    for name, values in kept.get("arrays", {}).items():
        atoms.set_array(name, np.asarray(values))


def plain(values: np.ndarray) -> Any:
    """ASE's JSON has no arrays of texts: a list of them."""
    return values.tolist() if values.dtype.kind == "U" else values


def template(atoms: ase.Atoms) -> ase.Atoms:
    """New atoms of the same masses (amu), cell (Å), pbc and description, all at the origin."""
    template = ase.Atoms(
        numbers=atoms.numbers, masses=atoms.get_masses(), cell=atoms.cell, pbc=atoms.pbc
    )
    template.info, arrays = described(atoms)
    template.arrays.update(arrays)
    return template


def frame_atoms(
    template: ase.Atoms,
    time: float,
    positions: Array,
    momenta: Array,
    scalars: Mapping[str, float],
) -> ase.Atoms:
    """One frame: time (fs) in info, positions (Å), momenta (ASE's unit), :data:`.formats.SCALARS`.

    The potential energy is that of a SinglePointCalculator, heat is in info.
    """
    atoms = template.copy()
    atoms.positions[:] = positions
    atoms.set_array("momenta", momenta, float, (3,))
    atoms.info["time_fs"] = float(time)
    if "heat" in scalars:
        atoms.info[HEAT] = float(scalars["heat"])
    if "potential_energies" in scalars:
        atoms.calc = SinglePointCalculator(atoms, energy=float(scalars["potential_energies"]))
    return atoms


def as_text(path: Path, info: dict[str, Any]) -> dict[str, str]:
    """Entries of info in ASE's JSON; what that cannot hold stays out of files, with a warning."""
    texts = {}
    for key, value in info.items():
        try:
            if not isinstance(key, str):
                raise TypeError("its name is not a text")
            texts[key] = encode(value)
        except (TypeError, ValueError) as error:
            stays_out(path, f"info[{key!r}]", str(error))
    return texts


def stays_out(path: Path, what: str, why: str) -> None:
    """Warn of what describes the atoms and is not in their file."""
    warnings.warn(f"{path.name} cannot hold {what} of the atoms: {why}", stacklevel=2)
