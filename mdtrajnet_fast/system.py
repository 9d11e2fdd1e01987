"""Flat atoms of any mixture of molecules and periodic cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import ase
import numpy as np
from ase import units


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

        Raises TypeError for anything but Atoms and ValueError for a system without atoms.
        """
        many = [atoms] if isinstance(atoms, ase.Atoms) else list(atoms)
        for k, one in enumerate(many):
            if not isinstance(one, ase.Atoms):
                raise TypeError(f"expected ase.Atoms or a list of them, got {type(one)} at {k}")
            if len(one) == 0:
                raise ValueError(f"system {k} has no atoms")
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

    @property
    def system_index(self) -> np.ndarray:
        """[atoms] int64, the system each atom belongs to."""
        return np.repeat(np.arange(len(self)), np.diff(self.ptr))
