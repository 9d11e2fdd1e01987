"""Flat atoms of any mixture of molecules and periodic cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ase
import numpy as np
from ase import units
from ase.data import atomic_masses, chemical_symbols

# Beyond this distance from the origin (Å) float64 no longer resolves a motion.
FARTHEST = 1e8

# By how much a mass may differ from the standard one of its element: those of the most frequent
# isotopes, which some programs take, are within it (boron's by 1.8 %), the others of the elements
# up to argon are not.
_SAME_MASS = 0.02

# Names that other programs have for velocities.
_VELOCITIES = frozenset(("v", "vel", "velo", "vels", "velos", "velocity", "velocities"))


def check_atoms(atoms: ase.Atoms, name: str = "the system") -> None:
    """Refuse what cannot be simulated; `name` says in the message which system it is.

    Raises TypeError for anything but Atoms, and ValueError, with the atom's index, for no atoms,
    constraints, a charge or unpaired electrons (:func:`check_closed_shell`), sites of a CIF that
    are occupied in part, unknown elements, masses that are not positive, and positions, momenta or
    cells that are not finite or far beyond any simulation.
    """
    if not isinstance(atoms, ase.Atoms):
        raise TypeError(f"expected ase.Atoms or a list of them, got {type(atoms)} for {name}")
    if len(atoms) == 0:
        raise ValueError(f"{name} has no atoms")
    check_unconstrained(atoms, name)
    check_closed_shell(atoms, name)
    check_occupied(atoms, name)

    def refuse(bad: np.ndarray, what: str, values: np.ndarray, expected: str) -> None:
        if bad.any():
            i = int(np.argmax(bad))
            raise ValueError(f"atom {i} of {name} has {what} {values[i]}, expected {expected}")

    z = atoms.numbers
    refuse((z < 1) | (z >= len(chemical_symbols)), "atomic number", z, "that of an element")
    mass = atoms.get_masses()
    refuse(~((mass > 0) & np.isfinite(mass)), "mass", mass, "a positive number of amu")
    x, p = atoms.positions, atoms.get_momenta()
    near = (abs(x) < FARTHEST).all(axis=1)
    refuse(~near, "position", x, f"finite numbers of Å, below {FARTHEST:g}")
    refuse(~np.isfinite(p).all(axis=1), "momentum", p, "finite numbers")
    if not np.isfinite(atoms.cell[:]).all():
        raise ValueError(f"the cell of {name} is not finite: {atoms.cell[:].tolist()}")


def check_closed_shell(atoms: ase.Atoms, name: str = "the system") -> None:
    """Refuse a charge and unpaired electrons, wherever ASE's programs say them, with a ValueError.

    In info, and as sums of initial charges and magnetic moments, from which ASE's calculators take
    them; charges of atoms that make up less than half an electron are partial ones.
    """
    net = float(atoms.get_initial_charges().sum())
    unpaired = float(np.linalg.norm(atoms.get_initial_magnetic_moments().sum(axis=0)))
    said = {f'info["{key}"]': atoms.info.get(key) for key in ("charge", "total_charge")}
    said["the sum of its initial charges"] = net if abs(net) >= 0.5 else None
    for where, value in said.items():
        if charge := _number(value):
            raise ValueError(
                f"{name} has a charge: {where} is {charge:g}; models know neutral systems only. "
                "If that is not what it means, remove it, as with del atoms.info[...] or "
                "atoms.set_initial_charges()"
            )
    shells = {'info["multiplicity"]': (_number(atoms.info.get("multiplicity")) or 1.0) - 1}
    shells["the sum of its initial magnetic moments"] = unpaired if unpaired >= 0.5 else 0.0
    for where, electrons in shells.items():
        if electrons:
            raise ValueError(
                f"{name} has {abs(electrons):g} unpaired electrons, as {where} says; models know "
                "closed shells only. If that is not what it means, remove it, as with "
                "atoms.set_initial_magnetic_moments()"
            )


def check_occupied(atoms: ase.Atoms, name: str = "the system") -> None:
    """Refuse, with a ValueError, sites that ASE read as occupied in part, in info["occupancy"]."""
    sites = atoms.info.get("occupancy")
    for site in sites.values() if isinstance(sites, dict) else ():
        shares = list(site.values()) if isinstance(site, dict) else []
        if len(shares) > 1 or any((_number(share) or 0.0) < 0.99 for share in shares):
            said = ", ".join(f"{element} {share}" for element, share in site.items())
            raise ValueError(
                f'{name} has a site that is occupied in part ({said}; info["occupancy"]): of '
                "disorder choose an arrangement in which all atoms are there, and remove the entry"
            )


def check_unconstrained(atoms: ase.Atoms, name: str = "the system") -> None:
    """Refuse constraints with a ValueError; readers of some formats make some of no atom."""
    for one in atoms.constraints:
        if np.size(getattr(one, "index", "not by index")) > 0:
            raise ValueError(
                f"{name} has constraints ({type(one).__name__}), which predicted motion cannot "
                "keep: remove them, in Python with atoms.set_constraint()"
            )


def check_masses(numbers: np.ndarray, masses: np.ndarray, name: str) -> None:
    """Refuse isotopes, for models that know elements alone.

    numbers: [atoms]. masses: [atoms] amu. Raises ValueError, with the first of them.
    """
    standard = atomic_masses[numbers]
    other = abs(masses - standard) > _SAME_MASS * standard
    if other.any():
        i = int(np.argmax(other))
        raise ValueError(
            f"atom {i} of {name}, {chemical_symbols[numbers[i]]}, has the mass {masses[i]:g} amu, "
            f"not the {standard[i]:g} amu of its element: models have no masses as an input and "
            "cannot tell isotopes from others. To go on as if it were the element give "
            'masses="standard" (--masses standard), or set them with atoms.set_masses("defaults")'
        )


def check_velocities_named(atoms: ase.Atoms, name: str = "the system") -> None:
    """Refuse velocities under a name that ASE does not take for them, in atoms at rest.

    Raises ValueError, with the name of the array.
    """
    for key, values in atoms.arrays.items():
        if key.lower() in _VELOCITIES and values.shape == (len(atoms), 3):
            raise ValueError(
                f"{name} has an array {key!r} that looks like velocities, which ASE does not use: "
                "give them as momenta (ASE units), or draw others at a temperature"
            )


def _number(value: Any) -> float | None:
    """None for what is no number: keys of info are anybody's, and may mean something else."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


@dataclass(frozen=True)
class System:
    """Atoms of one or many systems, one after the other.

    numbers: [atoms] int64, atomic numbers.
    positions: [atoms, 3] float64, Å, unwrapped.
    velocities: [atoms, 3] float64, Å/fs.
    masses: [atoms] float64, amu.
    cell: [systems, 3, 3] float64, Å, one cell vector a row.
    pbc: [systems, 3] bool.
    ptr: [systems + 1] int64; system k holds the atoms ptr[k]:ptr[k + 1].
    """

    numbers: np.ndarray
    positions: np.ndarray
    velocities: np.ndarray
    masses: np.ndarray
    cell: np.ndarray
    pbc: np.ndarray
    ptr: np.ndarray

    @classmethod
    def from_atoms(cls, atoms: ase.Atoms | Sequence[ase.Atoms]) -> System:
        """Collect ASE atoms with their velocities (missing momenta count as zero).

        Raises what :func:`check_atoms` does, and ValueError for an empty list.
        """
        many = [atoms] if isinstance(atoms, ase.Atoms) else list(atoms)
        for k, one in enumerate(many):
            check_atoms(one, f"system {k}")
        if not many:
            raise ValueError("expected at least one ase.Atoms, got an empty list")
        return cls(
            numbers=np.concatenate([a.numbers for a in many]).astype(np.int64),
            positions=np.concatenate([a.positions for a in many]).astype(np.float64),
            velocities=np.concatenate([a.get_velocities() for a in many]) * units.fs,
            masses=np.concatenate([a.get_masses() for a in many]),
            cell=np.stack([np.asarray(a.cell) for a in many]).astype(np.float64),
            pbc=np.stack([a.pbc for a in many]),
            ptr=np.cumsum([0] + [len(a) for a in many]).astype(np.int64),
        )

    def __len__(self) -> int:
        return len(self.ptr) - 1

    def copies(self, positions: np.ndarray) -> System:
        """Copies at other positions, [copies, atoms, 3] Å, one after another."""
        count = len(positions)
        return System(
            numbers=np.tile(self.numbers, count),
            positions=positions.reshape(-1, 3),
            velocities=np.tile(self.velocities, (count, 1)),
            masses=np.tile(self.masses, count),
            cell=np.tile(self.cell, (count, 1, 1)),
            pbc=np.tile(self.pbc, (count, 1)),
            ptr=np.append(0, np.cumsum(np.tile(np.diff(self.ptr), count))),
        )

    def check_masses(self) -> None:
        """Refuse isotopes, with a ValueError: see :func:`check_masses`."""
        for k, (a, b) in enumerate(zip(self.ptr, self.ptr[1:], strict=False)):
            check_masses(self.numbers[a:b], self.masses[a:b], f"system {k}")

    @property
    def system_index(self) -> np.ndarray:
        """[atoms] int64, the system each atom belongs to."""
        return np.repeat(np.arange(len(self)), np.diff(self.ptr))

    def per_system(self, values: np.ndarray) -> np.ndarray:
        """Sums [systems] over the atoms of each system of values [atoms]."""
        return np.add.reduceat(values, self.ptr[:-1])

    def kinetic_energy(self) -> np.ndarray:
        """Kinetic energies [systems] (eV)."""
        return self.per_system(0.5 / units.fs**2 * self.masses * (self.velocities**2).sum(1))

    def relative_kinetic_energy(self) -> np.ndarray:
        """Kinetic energies [systems] (eV) of the motion relative to the centre of mass of each."""
        p = np.stack([self.per_system(self.masses * v) for v in self.velocities.T])
        overall = (p**2).sum(0) / self.per_system(self.masses)
        return self.kinetic_energy() - 0.5 / units.fs**2 * overall
